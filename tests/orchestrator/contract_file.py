"""The contract's file, made of what the server shows.

python -m tests.orchestrator.contract_file    writes it anew
"""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from orchestrator.app import create_app
from orchestrator.services import services_of
from orchestrator.settings import Settings

CONTRACT = Path(__file__).parents[2] / "orchestrator-openapi.yaml"
HEAD = """\
# The contract between orchestrators and nodes. Made from the reference orchestrator's own schema:
#   python -m tests.orchestrator.contract_file
"""


def shown_schema() -> dict[str, Any]:
    """Give what a server shows at /openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), admin_key="", registration_token=None)
        app = create_app(settings)
        services_of(app).database.close()
        return app.openapi()


def as_yaml(schema: dict[str, Any]) -> str:
    """Write a schema as the file has it."""
    return HEAD + yaml.dump(schema, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes long texts as people do, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


if __name__ == "__main__":
    CONTRACT.write_text(as_yaml(shown_schema()), encoding="utf-8")
