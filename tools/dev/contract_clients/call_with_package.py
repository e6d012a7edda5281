"""Call an orchestrator with a package that openapi-python-client has generated.

Its one argument is the package's folder.
"""

import importlib
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

URL = os.environ["ORCHESTRATOR_URL"]
NAME = "openapi-python-client"


def main(folder: Path) -> None:
    """Register, send a heartbeat, create and list."""
    sys.path.insert(0, str(folder.parent))
    package = importlib.import_module(folder.name)
    walked = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    modules = {module.name.rpartition(".")[2]: module.name for module in walked}
    client_class = importlib.import_module(f"{package.__name__}.client").AuthenticatedClient

    def call(operation: str, header: str, secret: str, body: object = None) -> Any:  # noqa: ANN401
        client = client_class(
            base_url=URL,
            token=secret,
            prefix="",
            auth_header_name=header,
            raise_on_unexpected_status=True,
        )
        module = importlib.import_module(modules[operation])
        arguments = {} if body is None else {"body": body_class(module).from_dict(body)}
        response = module.sync_detailed(client=client, **arguments)
        assert response.status_code == 200, response  # noqa: PLR2004
        return response.parsed

    registration = {"hostname": "host.example", "os_type": "linux", "name": NAME}
    token, admin_key = os.environ["REGISTRATION_TOKEN"], os.environ["ADMIN_API_KEY"]
    node = call("register", "X-Registration-Token", token, registration)
    beat = {"node_id": str(node.id), "status": "idle"}
    assert call("record_heartbeat", "X-API-Key", node.api_key, beat).id == node.id
    created = call("create_task", "X-API-Key", admin_key, {"prompt": "Count the sales"})
    tasks = call("list_tasks", "X-API-Key", admin_key)
    assert created.id in [task.id for task in tasks]


def body_class(module: ModuleType) -> Any:  # noqa: ANN401 - a generated class
    """Return the class of the body that an operation takes."""
    return get_type_hints(module.sync_detailed)["body"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
