"""One frozen object says how the server behaves."""

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_MAX_UPLOAD_BYTES = 4 * 1024**3
DEFAULT_MIN_FREE_BYTES = 1024**3
DEFAULT_HEARTBEAT_TIMEOUT_S = 45
DEFAULT_LOST_AFTER_S = 600


@dataclass(frozen=True)
class Settings:
    """How one server behaves; the secrets stay out of its repr."""

    data_dir: Path
    """Files live here, and the database if it is SQLite."""
    admin_key: str = field(repr=False)
    registration_token: str | None = field(repr=False)
    """What a node registers with; None means that registration is disabled."""
    database_url: str | None = field(default=None, repr=False)
    """A PostgreSQL database, maybe with its password; None means SQLite in the data folder."""
    heartbeat_timeout_s: float = DEFAULT_HEARTBEAT_TIMEOUT_S
    """A node silent for longer is offline, and what it has not started goes back to the queue.

    The default is three heartbeats of our runner.
    """
    lost_after_s: float = DEFAULT_LOST_AFTER_S
    """How long after its time limit a task is given up if its node is silent or has it no more."""
    redelivery_after_s: float = 5
    """How long an assignment may go unreported before it is offered to its node again."""
    sweep_every_s: float = 1
    """How often the sweeper looks for leases that have ended and tasks whose time has come."""
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    min_free_bytes: int = DEFAULT_MIN_FREE_BYTES
    """Uploads are refused where they would leave less of the disk."""
    failures_per_minute: int = 20
    """How many wrong credentials one address may show."""
    trusted_proxies: str | None = None
    """Addresses, with commas between, that may tell clients' own in X-Forwarded-For; None: nobody.

    Whoever may chooses what the throttle and the audit see.
    """
    public_url: str | None = None
    """The address that assignments carry; None means the one that the node asked at."""
