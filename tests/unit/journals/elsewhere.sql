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
INSERT INTO "identities" VALUES(1,'node-1','node-key-1','http://other.example','{"capabilities": [], "hostname": "host", "name": "host-1", "os_type": "linux", "tags": {}}',1.0,0);
INSERT INTO "identities" VALUES(2,'node-2','node-key-2','http://orchestrator.example','{"capabilities": [], "hostname": "host", "name": "host-1", "os_type": "linux", "tags": {}}',20.0,0);
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
INSERT INTO "outbox" VALUES(1,'t-other','logs','{"job_id": "t-other", "task_id": "t-other", "session": {"id": "s"}}',2000000012.0,0,0.0,NULL);
INSERT INTO "outbox" VALUES(2,'t-other','status','{"job_id": "t-other", "task_id": "t-other", "status": "error", "message": "failed: exit code 9", "timestamp": "2026-01-31T09:26:53+00:00"}',2000000012.0,0,0.0,NULL);
INSERT INTO "outbox" VALUES(3,'t-own','logs','{"job_id": "t-own", "task_id": "t-own", "session": {"id": "s"}}',2000000032.0,0,0.0,NULL);
INSERT INTO "outbox" VALUES(4,'t-own','status','{"job_id": "t-own", "task_id": "t-own", "status": "error", "message": "failed: exit code 9", "timestamp": "2026-01-31T09:26:53+00:00"}',2000000032.0,0,0.0,NULL);
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
INSERT INTO "tasks" VALUES('t-other',1,'ended','{"task_id": "t-other", "prompt": "[print-line well]", "orchestrator_url": "http://other.example", "timeout_seconds": 3600, "files": [], "file_checksums": []}',2000000010.0,'boot-1','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0de',2000000011.0,100000.0,NULL,NULL,'failed',9,'failed: exit code 9',2000000012.0,NULL,'docker');
INSERT INTO "tasks" VALUES('t-own',2,'ended','{"task_id": "t-own", "prompt": "[print-line well]", "orchestrator_url": "http://orchestrator.example", "timeout_seconds": 3600, "files": [], "file_checksums": []}',2000000030.0,'boot-1','c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0de',2000000031.0,100000.0,NULL,NULL,'failed',9,'failed: exit code 9',2000000032.0,NULL,'podman');
CREATE INDEX open_tasks ON tasks (accepted_at) WHERE state <> 'closed';
CREATE INDEX letters ON outbox
    (task_id, id, path, created_at, attempts, next_attempt_at, parked);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('outbox',4);
COMMIT;
PRAGMA user_version = 2;
