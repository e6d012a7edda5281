"""Claiming tasks from the database, without a server: for processes that do nothing else."""

from multiprocessing.connection import Connection
from pathlib import Path

from orchestrator.db.database import Database
from orchestrator.scheduling.claims import Claim, look_for, take
from orchestrator.settings import Settings


def claim_next(database: Database, settings: Settings, node_id: str) -> Claim:
    """Return the node's next task, assigned to it, or when to look again."""
    (look,) = look_for(database, settings, [node_id])
    if look is None:
        raise LookupError(node_id)
    if not look.seen:
        return Claim(look_again_s=look.look_again_s)
    return take(database, settings, look)


def claim_all(data_dir: Path, url: str, node_id: str, parent: Connection) -> None:
    """Wait for the parent, then claim tasks until there are none, and send it their ids."""
    settings = Settings(
        data_dir,
        admin_key="",
        registration_token=None,
        # No process reports on what it claims.
        redelivery_after_s=10**6,
        max_unreported=10**6,
    )
    database = Database(data_dir, url)
    parent.send("ready")
    parent.recv()
    claim = Claim(look_again_s=0)
    while claim.task is not None or claim.look_again_s <= 1:
        claim = claim_next(database, settings, node_id)
        if claim.task is not None:
            parent.send(claim.task.id)
