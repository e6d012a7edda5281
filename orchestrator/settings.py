"""One frozen object says how the server behaves."""

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_MAX_UPLOAD_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Settings:
    """How one server behaves; the secrets stay out of its repr."""

    data_dir: Path
    """Database and files live here."""
    admin_key: str = field(repr=False)
    registration_token: str | None = field(repr=False)
    """What a node registers with; None means that registration is disabled."""
    heartbeat_timeout_s: float = 90
    """A node silent for longer is offline, and what it has not started goes back to the queue."""
    redelivery_after_s: float = 5
    """How long an assignment may go unreported before it is offered to its node again."""
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    public_url: str | None = None
    """The address that assignments carry; None means the one that the node asked at."""
