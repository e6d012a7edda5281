"""A process of its own that claims tasks until there are none, one line for each.

python -m tests.orchestrator.claiming DATA_DIR DATABASE_URL NODE_ID
"""

import sys
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


def main(data_dir: Path, database_url: str, node_id: str) -> None:
    """Claim tasks and print their ids; a task that is not reported on stays with the node."""
    settings = Settings(data_dir, admin_key="", registration_token=None, redelivery_after_s=10**6)
    database = Database(data_dir, database_url)
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        claim = claim_next(database, settings, node_id)
        if claim.task is not None:
            print(claim.task.id, flush=True)
        elif claim.look_again_s > 1:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
