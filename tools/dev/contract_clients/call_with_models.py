"""Call an orchestrator with models that datamodel-code-generator has generated.

Its arguments are the models' file and the contract that they were generated from.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pydantic
import yaml

URL = os.environ["ORCHESTRATOR_URL"]
NAME = "datamodel-code-generator"


def main(models_file: Path, contract_file: Path) -> None:
    """Register, send a heartbeat, create and list."""
    sys.path.insert(0, str(models_file.parent))
    models = importlib.import_module(models_file.stem)
    contract = yaml.safe_load(contract_file.read_text(encoding="utf-8"))

    def model(part: dict[str, Any]) -> Any:  # noqa: ANN401 - a generated class
        schema = part["content"]["application/json"]["schema"]
        name = (schema.get("items") or schema)["$ref"].rpartition("/")[2]
        model_class = getattr(models, name)
        return list.__class_getitem__(model_class) if "items" in schema else model_class

    def call(
        method: str, path: str, header: dict[str, str], body: dict[str, str] | None = None
    ) -> Any:  # noqa: ANN401 - an instance of a generated class
        operation = contract["paths"][path][method]
        content = None
        if body is not None:
            # Whole, with the nulls of the fields that were not set.
            content = model(operation["requestBody"])(**body).model_dump_json()
        headers = {"Content-Type": "application/json", **header}
        response = httpx.request(method, URL + path, content=content, headers=headers)
        response.raise_for_status()
        result = pydantic.TypeAdapter(model(operation["responses"]["200"]))
        return result.validate_json(response.content)

    token = {"X-Registration-Token": os.environ["REGISTRATION_TOKEN"]}
    admin = {"X-API-Key": os.environ["ADMIN_API_KEY"]}
    registration = {"hostname": "host.example", "os_type": "linux", "name": NAME}
    node = call("post", "/register", token, registration)
    beat = {"node_id": str(node.id), "status": "idle"}
    beaten = call("post", "/nodes/heartbeat", {"X-API-Key": node.api_key}, beat)
    assert beaten.id == node.id
    created = call("post", "/tasks", admin, {"prompt": "Count the sales"})
    tasks = call("get", "/tasks", admin)
    assert created.id in [task.id for task in tasks]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
