"""Whether the server is well."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select

from orchestrator import __version__
from orchestrator.clock import utc_now
from orchestrator.services import ServicesParam

router = APIRouter(tags=["system"])


class Health(BaseModel):
    """That the server answers."""

    status: Literal["healthy"] = "healthy"
    version: str
    timestamp: datetime


@router.get("/health")
def get_health(services: ServicesParam) -> Health:
    """Answer whoever asks, if the database answers."""
    with services.database.reading() as session:
        session.execute(select(1))
    return Health(version=__version__, timestamp=utc_now())
