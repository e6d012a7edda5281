"""What a request handler needs, handed to it by FastAPI."""

from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI, Request

from orchestrator.budgets import (
    Allowance,
    BodiesInFlight,
    DiskReserve,
    HistoryBudget,
    NodeCalls,
    OpenStreams,
    OutputPace,
)
from orchestrator.db.database import Database
from orchestrator.db.signing import SigningSecret
from orchestrator.log import Sampler
from orchestrator.scheduling.announcing import Announcer
from orchestrator.scheduling.batch import Batch
from orchestrator.scheduling.breaks import Breaks
from orchestrator.scheduling.claims import Look
from orchestrator.scheduling.heartbeats import Heartbeats, TasksByNode
from orchestrator.scheduling.waiting import Waiters
from orchestrator.security import DenialSampler, NodeCache, ProxyWatch, Throttle
from orchestrator.settings import Settings


@dataclass(frozen=True)
class Services:
    """The parts of one running server."""

    settings: Settings
    database: Database
    signing_secret: SigningSecret
    waiters: Waiters
    announcer: Announcer
    throttle: Throttle
    denials: DenialSampler
    """Decides which refused requests the audit records."""
    proxies: ProxyWatch
    refusals: Sampler
    """Decides which refused requests are logged."""
    nodes: NodeCache
    heartbeats: Heartbeats
    breaks: Breaks
    cancelled: TasksByNode
    """Tasks that nodes must stop."""
    unreported: TasksByNode
    """Assignments that their nodes have not reported on."""
    looks: Batch[str, Look | None]
    """Looks at the queue, by node id; None for a node that is no longer registered."""
    in_flight: BodiesInFlight
    node_calls: NodeCalls
    history: HistoryBudget
    log_bytes: Allowance
    """By task."""
    output_bytes: Allowance
    """By task."""
    node_output_bytes: Allowance
    """By node."""
    node_artifact_bytes: Allowance
    """By node."""
    output_pace: OutputPace
    output_streams: OpenStreams
    page_streams: OpenStreams
    output_writers: CapacityLimiter
    """Of those that store output, so that not every thread waits for the disk with it."""
    reserve: DiskReserve
    large_bodies: CapacityLimiter
    """Of those, as many are parsed at once."""


def services_of(app: FastAPI) -> Services:
    """Return the parts that `create_app` put into an application."""
    services = app.state.services
    if not isinstance(services, Services):
        raise TypeError("the application was not made by create_app")
    return services


async def _of_request(request: Request) -> Services:
    return services_of(request.app)


ServicesParam = Annotated[Services, Depends(_of_request)]
"""A handler's parameter that receives the services."""
