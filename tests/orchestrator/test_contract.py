"""The contract: the file, the server and the examples say the same."""

from typing import Any

import pytest
import yaml

from orchestrator.routes import stats as system
from orchestrator.schemas import bodies as wire
from orchestrator.schemas import examples
from orchestrator.schemas import keys as key_wire
from orchestrator.schemas.openapi import to_yaml
from tests.orchestrator.contract_file import CONTRACT, HEAD, shown_schema
from tests.orchestrator.serving import RunningOrchestrator, ok


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Make the schema once."""
    return shown_schema()


def test_file_is_what_the_server_shows(schema: dict[str, Any]) -> None:
    advice = "write it anew with: python -m tests.orchestrator.contract_file"
    assert CONTRACT.read_text(encoding="utf-8") == HEAD + to_yaml(schema), advice


def test_server_shows_its_schema_to_whoever_asks(orchestrator: RunningOrchestrator) -> None:
    shown = ok(orchestrator.client().get("/openapi.json"))
    assert shown["openapi"].startswith("3.1.")
    text = orchestrator.client().get("/openapi.yaml")
    assert text.headers["Content-Type"] == "application/yaml"
    assert yaml.safe_load(text.text) == shown


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_example_fits_its_schema(name: str) -> None:
    found = [module for module in (wire, key_wire, system) if hasattr(module, name)]
    model = getattr(found[0], name)
    shown = model.model_validate(examples.EXAMPLES[name]).model_dump(
        mode="json", exclude_unset=True
    )
    assert set(shown) <= set(examples.EXAMPLES[name])


def test_every_body_has_an_example(schema: dict[str, Any]) -> None:
    bodies = {
        name
        for name, model in schema["components"]["schemas"].items()
        if model.get("type") == "object"
    }
    assert bodies - set(examples.EXAMPLES) == {"HistoryEntry", "Problem"}


def test_every_call_says_what_key_it_needs(schema: dict[str, Any]) -> None:
    unsecured = {
        path
        for path, operations in schema["paths"].items()
        for operation in operations.values()
        if "security" not in operation
    }
    assert unsecured <= {"/health", "/dashboard"}
