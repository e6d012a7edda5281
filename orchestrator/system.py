"""Whether the server is well."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.clock import utc_now

router = APIRouter(tags=["system"])


class Health(BaseModel):
    """That the server answers."""

    status: Literal["healthy"] = "healthy"
    version: str
    timestamp: datetime


@router.get("/health")
async def get_health() -> Health:
    """Answer whoever asks."""
    return Health(version=__version__, timestamp=utc_now())
