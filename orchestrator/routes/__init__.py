"""The calls of the API, one file a resource."""

from typing import Annotated, Any

from fastapi import Path
from fastapi.routing import APIRoute

from orchestrator.schemas.types import Id

NodeId = Annotated[Id, Path(description="The node's id.")]
TaskId = Annotated[Id, Path(description="The task's id.")]
KeyId = Annotated[Id, Path(description="The key's id.")]


class Route(APIRoute):
    """Leaves fields without a value out of its responses."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - all of APIRoute's
        super().__init__(*args, **{**options, "response_model_exclude_none": True})
