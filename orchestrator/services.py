"""What a call's handler reaches for, handed to it by FastAPI."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from orchestrator.announcing import Announcer
from orchestrator.batch import Batch
from orchestrator.claims import Look
from orchestrator.database import Database
from orchestrator.denials import Denials
from orchestrator.heartbeats import Beat
from orchestrator.identities import Identities
from orchestrator.settings import Settings
from orchestrator.throttle import Throttle
from orchestrator.waiters import Waiters
from orchestrator.wire import HeartbeatAnswer


@dataclass(frozen=True)
class Services:
    """The parts of one running server."""

    settings: Settings
    database: Database
    waiters: Waiters
    announcer: Announcer
    throttle: Throttle
    denials: Denials
    identities: Identities
    heartbeats: Batch[Beat, HeartbeatAnswer | None]
    looks: Batch[str, Look | None]
    """Looks at the queue, each for the node of this id; None where it is no longer registered."""


def services_of(app: FastAPI) -> Services:
    """Give the parts that `create_app` put into an application."""
    services = app.state.services
    if not isinstance(services, Services):
        raise TypeError("the application was not made by create_app")
    return services


async def _of_request(request: Request) -> Services:
    return services_of(request.app)


ServicesParam = Annotated[Services, Depends(_of_request)]
"""A handler's parameter that receives the services."""
