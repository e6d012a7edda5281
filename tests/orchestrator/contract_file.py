"""The contract's file, made of the server's schema.

python -m tests.orchestrator.contract_file    writes it
"""

import tempfile
from pathlib import Path
from typing import Any

from orchestrator.app import create_app
from orchestrator.schemas.openapi import to_yaml
from orchestrator.services import services_of
from orchestrator.settings import Settings

CONTRACT = Path(__file__).parents[2] / "orchestrator-openapi.yaml"
HEAD = """\
# The contract between orchestrators and nodes. Made from the reference orchestrator's own schema:
#   python -m tests.orchestrator.contract_file
"""


def shown_schema() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), admin_key="", registration_token=None)
        app = create_app(settings)
        services_of(app).database.close()
        return app.openapi()


if __name__ == "__main__":
    CONTRACT.write_text(HEAD + to_yaml(shown_schema()), encoding="utf-8")
