"""The contract: the file, the server and the examples say the same."""

from typing import Any

import pytest

from orchestrator import examples, key_wire, system, wire
from orchestrator.documentation import page_of
from tests.orchestrator.contract_file import CONTRACT, as_yaml, shown_schema
from tests.orchestrator.serving import RunningOrchestrator, ok


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Make the schema once."""
    return shown_schema()


def test_file_is_what_the_server_shows(schema: dict[str, Any]) -> None:
    advice = "write it anew with: python -m tests.orchestrator.contract_file"
    assert CONTRACT.read_text(encoding="utf-8") == as_yaml(schema), advice


def test_server_shows_its_schema_to_whoever_asks(orchestrator: RunningOrchestrator) -> None:
    shown = ok(orchestrator.client().get("/openapi.json"))
    assert shown["openapi"].startswith("3.1.")


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
    assert unsecured <= {"/health", "/dashboard", "/docs"}


def test_page_for_people_shows_every_call_and_body_and_asks_nobody_else(
    orchestrator: RunningOrchestrator, schema: dict[str, Any]
) -> None:
    page = orchestrator.client().get("/docs")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path, operations in schema["paths"].items():
        assert f"<code>{path}</code>" in page.text
        assert all(f'id="{one["operationId"]}"' in page.text for one in operations.values())
    for name in schema["components"]["schemas"]:
        assert f'<details id="{name}">' in page.text
    assert "http://" not in page.text
    assert "<script" not in page.text


def test_page_for_people_escapes_what_it_shows() -> None:
    hostile = "<script>alert('**no**')</script>"
    info = {"title": hostile, "summary": hostile, "version": "1", "description": hostile}
    page = page_of({"info": info, "tags": [], "paths": {}, "components": {"schemas": {}}})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
