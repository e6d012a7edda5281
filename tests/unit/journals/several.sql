-- A journal that the runner of commit 5a850ec wrote.
BEGIN TRANSACTION;
CREATE TABLE identities (
    id INTEGER PRIMARY KEY,
    node_id TEXT NOT NULL,
    api_key TEXT NOT NULL,
    orchestrator_url TEXT NOT NULL,
    node TEXT NOT NULL,
    registered_at REAL NOT NULL,
    refused INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "identities" VALUES(1,'node-1','node-key-1','http://orchestrator.example','{"capabilities": [], "hostname": "host", "name": "host-1", "os_type": "linux", "tags": {"site": "a"}}',1.0,0);
INSERT INTO "identities" VALUES(2,'node-2','node-key-2','http://orchestrator.example','{"capabilities": [], "hostname": "host", "name": "host-1", "os_type": "linux", "tags": {"site": "b"}}',30.0,0);
INSERT INTO "identities" VALUES(3,'node-3','node-key-3','http://orchestrator.example','{"capabilities": [], "hostname": "host", "name": "host-1", "os_type": "linux", "tags": {}}',50.0,0);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at REAL NOT NULL DEFAULT 0,
    parked TEXT
);
INSERT INTO "outbox" VALUES(1,'t-first-ended','logs','{"job_id": "t-first-ended", "task_id": "t-first-ended", "session": {"id": "s"}}',2000000022.0,0,0.0,NULL);
INSERT INTO "outbox" VALUES(2,'t-first-ended','status','{"job_id": "t-first-ended", "task_id": "t-first-ended", "status": "error", "message": "failed: exit code 9", "timestamp": "2026-01-31T09:26:53+00:00"}',2000000022.0,0,0.0,NULL);
INSERT INTO "outbox" VALUES(3,'t-third-ended','logs','{"job_id": "t-third-ended", "task_id": "t-third-ended", "session": {"id": "s"}}',2000000062.0,0,0.0,NULL);
INSERT INTO "outbox" VALUES(4,'t-third-ended','status','{"job_id": "t-third-ended", "task_id": "t-third-ended", "status": "error", "message": "failed: exit code 9", "timestamp": "2026-01-31T09:26:53+00:00"}',2000000062.0,0,0.0,NULL);
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    identity INTEGER NOT NULL REFERENCES identities (id),
    state TEXT NOT NULL,
    assignment TEXT,
    accepted_at REAL NOT NULL,
    boot_id TEXT,
    container_id TEXT,
    started_at REAL,
    deadline_uptime_s REAL,
    stop_reason TEXT,
    stop_asked_at REAL,
    end_reason TEXT,
    exit_code INTEGER,
    message TEXT,
    ended_at REAL,
    closed_at REAL
, engine TEXT);
INSERT INTO "tasks" VALUES('t-first-running',1,'running','{"task_id": "t-first-running", "prompt": "[wait-for go]", "orchestrator_url": "http://orchestrator.example", "timeout_seconds": 3600, "files": [], "file_checksums": []}',2000000010.0,'boot-1','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0de',2000000011.0,100000.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'podman');
INSERT INTO "tasks" VALUES('t-first-ended',1,'ended','{"task_id": "t-first-ended", "prompt": "[print-line well]", "orchestrator_url": "http://orchestrator.example", "timeout_seconds": 3600, "files": [], "file_checksums": []}',2000000020.0,'boot-1','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0de',2000000021.0,100000.0,NULL,NULL,'failed',9,'failed: exit code 9',2000000022.0,NULL,'podman');
INSERT INTO "tasks" VALUES('t-second-running',2,'running','{"task_id": "t-second-running", "prompt": "[wait-for go]", "orchestrator_url": "http://orchestrator.example", "timeout_seconds": 3600, "files": [], "file_checksums": []}',2000000040.0,'boot-1','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0de',2000000041.0,100000.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'podman');
INSERT INTO "tasks" VALUES('t-third-ended',3,'ended','{"task_id": "t-third-ended", "prompt": "[print-line well]", "orchestrator_url": "http://orchestrator.example", "timeout_seconds": 3600, "files": [], "file_checksums": []}',2000000060.0,'boot-1','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0de',2000000061.0,100000.0,NULL,NULL,'failed',9,'failed: exit code 9',2000000062.0,NULL,'podman');
CREATE INDEX open_tasks ON tasks (accepted_at) WHERE state <> 'closed';
CREATE INDEX letters ON outbox
    (task_id, id, path, created_at, attempts, next_attempt_at, parked);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('outbox',4);
COMMIT;
PRAGMA user_version = 2;
