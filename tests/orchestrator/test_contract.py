"""The contract: the file, the server and the examples agree."""

import json
from typing import Any

import pytest
import yaml

from orchestrator.routes import stats
from orchestrator.schemas import bodies, examples, keys
from orchestrator.schemas.openapi import to_yaml
from tests.harness import seed_contract
from tests.orchestrator.contract_file import CONTRACT, HEAD, shown_schema
from tests.orchestrator.serving import RunningOrchestrator, ok


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return shown_schema()


def test_file_is_the_schema_of_the_server(schema: dict[str, Any]) -> None:
    advice = "write it with: python -m tests.orchestrator.contract_file"
    assert CONTRACT.read_text(encoding="utf-8") == HEAD + to_yaml(schema), advice


def test_schema_needs_no_key(orchestrator: RunningOrchestrator) -> None:
    schema = ok(orchestrator.client().get("/openapi.json"))
    assert schema["openapi"].startswith("3.1.")
    response = orchestrator.client().get("/openapi.yaml")
    assert response.headers["Content-Type"] == "application/yaml"
    assert yaml.safe_load(response.text) == schema


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_example_fits_its_schema(name: str) -> None:
    model = next(getattr(module, name) for module in (bodies, keys, stats) if hasattr(module, name))
    example = model.model_validate(examples.EXAMPLES[name])
    fields = example.model_dump(mode="json", exclude_unset=True)
    assert set(fields) <= set(examples.EXAMPLES[name])


def test_every_body_has_an_example(schema: dict[str, Any]) -> None:
    schemas = schema["components"]["schemas"].items()
    names = {name for name, model in schemas if model.get("type") == "object"}
    assert names - set(examples.EXAMPLES) == {"HistoryEntry", "Problem"}


def test_every_call_names_the_key_that_the_seeds_contract_names(schema: dict[str, Any]) -> None:
    seed = yaml.safe_load(seed_contract.PATH.read_text(encoding="utf-8"))
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            # Calls that only ours has are not in it.
            expected = seed["paths"].get(path, {}).get(method, {}).get("security", [])
            assert operation["security"][: len(expected)] == expected, f"{method} {path}"


def test_responses_have_no_null_but_in_assignments_and_sent_logs(schema: dict[str, Any]) -> None:
    nullable = {
        name
        for name, model in schema["components"]["schemas"].items()
        if '"null"' in json.dumps(model.get("properties"))
    }
    requests = {"Registration", "Heartbeat", "NewTask", "NewKey", "Report", "LogSubmission"}
    requests |= {"NewToken", "OutputChunk"}
    assert nullable == requests | {"LogSession", "LogMessage"}
