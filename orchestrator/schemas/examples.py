"""One example of each body, for the contract to show; a test checks that each fits its model."""

from typing import Any

Fields = dict[str, Any]

_NODE_ID = "7d0c6c3e-5f0a-4b53-9f0e-2a4d1c8b7e61"
_TASK_ID = "b1f2a0c4-3d5e-4f67-8a9b-0c1d2e3f4a5b"
_KEY_ID = "c9e8d7f6-a5b4-4c3d-9e2f-1a0b9c8d7e6f"
_FILE = "3f9c1e7ab204-sales.csv"
_CHECKSUM = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
_MORNING, _LATER = "2026-03-02T08:00:00Z", "2026-03-02T08:12:30Z"

_NODE: Fields = {
    "id": _NODE_ID,
    "hostname": "gpu-01.example.com",
    "name": "client-acme-gpu-1",
    "os_type": "ubuntu",
    "status": "idle",
    "last_heartbeat": _LATER,
    "registered_at": _MORNING,
    "capabilities": ["cuda"],
    "tags": {"env": "production"},
}
_TASK: Fields = {
    "id": _TASK_ID,
    "prompt": "Compare this week's sales with last week's",
    "target_node_name": "client-acme-*",
    "target_tags": {"env": "production"},
    "priority": 10,
    "timeout_seconds": 1800,
    "status": "success",
    "assigned_node_id": _NODE_ID,
    "created_at": _MORNING,
    "started_at": "2026-03-02T08:00:04Z",
    "completed_at": _LATER,
    "result": "Sales rose by 4 percent",
    "created_by": _KEY_ID,
    "files": [_FILE],
}
_KEY: Fields = {
    "key_id": _KEY_ID,
    "name": "acme-ci",
    "description": "Nightly reports of Acme's build",
    "key_prefix": "vk_Zt3qW",
    "allowed_node_patterns": ["client-acme-*"],
    "role": "submitter",
    "permissions": ["files:upload", "tasks:create"],
    "rate_limit": 60,
    "created_at": _MORNING,
    "expires_at": "2026-05-31T08:00:00Z",
    "enabled": True,
}
_TOKEN: Fields = {
    "token_id": "5e4d3c2b-1a09-4f8e-9d7c-6b5a4f3e2d1c",
    "name": "acme",
    "token_prefix": "vr_8Kd2x",
    "allowed_node_patterns": ["client-acme-*"],
    "max_uses": 20,
    "uses": 3,
    "created_at": _MORNING,
    "expires_at": "2026-05-31T08:00:00Z",
    "enabled": True,
}
_USE: Fields = {
    "timestamp": _LATER,
    "key_id": _KEY_ID,
    "action": "tasks:create",
    "detail": "POST /tasks",
    "client": "198.51.100.7",
}
_MESSAGE: Fields = {
    "id": "message-1",
    "role": "assistant",
    "content": "Sales rose by 4 percent",
    "model": "a-model",
    "provider": "a-provider",
    "created_at": 1772438400,
    "finished_at": 1772438412,
}
_SESSION: Fields = {
    "id": "session-1",
    "title": "Sales of the week",
    "prompt_tokens": 1200,
    "completion_tokens": 340,
    "cost": 0.02,
    "created_at": 1772438400,
    "updated_at": 1772439150,
    "messages": [_MESSAGE],
}
_EXTENSIONS = ["reregister", "pace", "task-key", "parked-reports"]
_SECRET = "vk_Zt3qW-shown-this-once"  # noqa: S105 - opens nothing

EXAMPLES: dict[str, Fields] = {
    "Registration": {
        "hostname": "gpu-01.example.com",
        "name": "client-acme-gpu-1",
        "os_type": "ubuntu",
        "capabilities": ["cuda"],
        "tags": {"env": "production"},
    },
    "NodeView": _NODE,
    "RegisteredNode": {**_NODE, "api_key": "shown-this-once", "extensions": _EXTENSIONS},
    "Heartbeat": {
        "node_id": _NODE_ID,
        "status": "busy",
        "current_task_id": _TASK_ID,
        "task_ids": [_TASK_ID],
    },
    "HeartbeatResponse": {
        **_NODE,
        "cancelled_task_ids": [],
        "extensions": _EXTENSIONS,
        "heartbeat_interval_seconds": 15,
        "new_api_key": "vn_shown-until-it-is-used",
    },
    "NodeRemoved": {"status": "deleted", "node_id": _NODE_ID},
    "NewTask": {
        "prompt": "Compare this week's sales with last week's",
        "target_node_name": "client-acme-*",
        "target_tags": {"env": "production"},
        "priority": 10,
        "timeout_seconds": 1800,
        "recurrence": "0 8 * * mon",
    },
    "TaskView": _TASK,
    "TaskDetail": {
        **_TASK,
        "history": [
            {"status": "pending", "timestamp": _MORNING},
            {"status": "success", "message": "done", "progress": 100, "timestamp": _LATER},
        ],
    },
    "Assignment": {
        "task_id": _TASK_ID,
        "prompt": "Compare this week's sales with last week's",
        "orchestrator_url": "https://orchestrator.example.com",
        "timeout_seconds": 1800,
        "files": [_FILE],
        "file_checksums": [_CHECKSUM],
        "original_names": ["sales.csv"],
        "task_api_key": "vt_b1f2a0c43d5e4f678a9b0c1d2e3f4a5b_of-this-task-alone",
    },
    "CleanedUp": {"deleted_count": 12},
    "Report": {
        "task_id": _TASK_ID,
        "job_id": _TASK_ID,
        "status": "running",
        "message": "reading the files",
        "progress": 12.5,
        "timestamp": _MORNING,
    },
    "ReportResponse": {"task_id": _TASK_ID, "job_id": _TASK_ID, "status": "running"},
    "LogMessage": _MESSAGE,
    "LogSession": _SESSION,
    "LogSubmission": {"task_id": _TASK_ID, "job_id": _TASK_ID, "session": _SESSION},
    "UploadedFile": {
        "filename": _FILE,
        "original_name": "sales.csv",
        "checksum": _CHECKSUM,
        "size": 3,
    },
    "NewKey": {
        "name": "acme-ci",
        "description": "Nightly reports of Acme's build",
        "allowed_node_patterns": ["client-acme-*"],
        "role": "submitter",
        "rate_limit": 60,
        "expires_in_days": 90,
    },
    "KeyView": _KEY,
    "ShownKey": {**_KEY, "api_key": _SECRET},
    "RotatedKey": {**_KEY, "rotated_at": _LATER, "api_key": _SECRET, "grace_period_hours": 24},
    "KeyDeleted": {"deleted": True, "key_id": _KEY_ID},
    "NewToken": {
        "name": "acme",
        "allowed_node_patterns": ["client-acme-*"],
        "expires_at": "2026-05-31T08:00:00Z",
        "max_uses": 20,
    },
    "TokenView": _TOKEN,
    "ShownToken": {**_TOKEN, "uses": 0, "token": "vr_8Kd2x-shown-this-once"},
    "TokenDeleted": {"deleted": True, "token_id": _TOKEN["token_id"]},
    "AuditView": _USE,
    "AuditLog": {"entries": [_USE], "total": 1},
    "Health": {"status": "healthy", "version": "0.1.0", "timestamp": _MORNING},
    "Statistics": {
        "total_nodes": 12,
        "active_nodes": 11,
        "idle_nodes": 8,
        "offline_nodes": 1,
        "pending_tasks": 2,
        "running_tasks": 3,
        "completed_tasks_today": 40,
        "failed_tasks_today": 1,
    },
}
"""By the name of the schema that the example is of."""
