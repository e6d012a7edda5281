"""The application: its parts wired together, and a response of one sentence for every error."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import cache, partial
from http import HTTPStatus
from itertools import chain

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as DatabaseTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator import __version__
from orchestrator.auth import address_of, check_key, check_token
from orchestrator.budgets import (
    OUTPUT_WRITERS,
    Allowance,
    BodiesInFlight,
    DiskReserve,
    HistoryBudget,
    NodeCalls,
    OpenStreams,
    OutputPace,
)
from orchestrator.db.database import CONNECTIONS, Database
from orchestrator.db.signing import SigningSecret
from orchestrator.errors import ConfigurationError, Conflict, Invalid, NotFound, Refused
from orchestrator.log import Sampler, fields
from orchestrator.middleware import (
    DEFAULT_LIMIT_BYTES,
    BodyLimit,
    Check,
    PlainRequests,
    RequireKeyBeforeBody,
)
from orchestrator.model import utc_now
from orchestrator.routes import (
    artifacts,
    assignments,
    files,
    keys,
    nodes,
    output,
    reports,
    stats,
    tasks,
    tokens,
)
from orchestrator.scheduling.announcing import Announcer, ThroughPostgresql, WithinProcess
from orchestrator.scheduling.batch import Batch
from orchestrator.scheduling.breaks import Breaks
from orchestrator.scheduling.claims import look_for
from orchestrator.scheduling.heartbeats import Heartbeats, TasksByNode
from orchestrator.scheduling.waiting import Waiters, WorkAvailable
from orchestrator.schemas.openapi import schema_of, to_yaml
from orchestrator.schemas.problems import invalid_sentence
from orchestrator.security import DenialSampler, NodeCache, ProxyWatch, Throttle
from orchestrator.services import Services, services_of
from orchestrator.settings import Settings
from orchestrator.sweeper import SWEEP, sweep
from orchestrator.uploads import prepare_folder
from orchestrator.web import dashboard

_LONGEST_PATH = 200
"""How much of a refused request's path is logged."""

_SENTENCES = {404: "there is no such path", 405: "the path does not take this method"}

# assignments come before tasks: /tasks/pending is not the task named "pending".
_LOGS = "/logs"
_PLAIN = frozenset({nodes.HEARTBEAT.path, assignments.PENDING.path})
_ROUTES = (
    stats,
    nodes,
    assignments,
    tasks,
    files,
    reports,
    output,
    artifacts,
    keys,
    tokens,
    dashboard,
)

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Open the data folder and build the application; `app.state.services` holds its parts.

    Raises ConfigurationError when the data folder cannot be used.
    """
    try:
        prepare_folder(settings.data_dir)
    except OSError as error:
        reason = error.strerror
        raise ConfigurationError(f"cannot use data folder {settings.data_dir}: {reason}") from error
    services = _services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # More threads than there are connections would only wait for one, and for Python's lock.
        to_thread.current_default_thread_limiter().total_tokens = CONNECTIONS
        async with anyio.create_task_group() as background:
            background.start_soon(services.announcer.listen)
            background.start_soon(sweep, services)
            yield
            background.cancel_scope.cancel()
        try:
            await to_thread.run_sync(services.heartbeats.write)
        except SQLAlchemyError as error:
            log.warning("the last heartbeats are lost: %s", getattr(error, "orig", error))
        services.database.close()

    app = FastAPI(
        version=__version__,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        redirect_slashes=False,
        # Their viewers load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    # FastAPI's way to a schema of one's own: it is made when it is first asked for, and kept.
    app.openapi = cache(lambda: schema_of(app))  # type: ignore[method-assign]
    app.add_middleware(
        RequireKeyBeforeBody,
        check_of=_checks(services),
    )
    app.add_middleware(
        BodyLimit,
        limits={
            _LOGS: reports.MAX_LOG_BYTES,
            "/nodes/heartbeat": nodes.MAX_HEARTBEAT_BYTES,
            "/upload": settings.max_upload_bytes + files.MULTIPART_OVERHEAD_BYTES,
        },
        put_limit=settings.max_artifact_bytes,
    )
    app.add_middleware(PlainRequests)
    # First: what they answer is asked for all the time.
    app.router.routes[:0] = [nodes.HEARTBEAT, assignments.PENDING]
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_api_route("/openapi.yaml", _show_contract, include_in_schema=False)
    app.add_api_route("/", _show_dashboard, include_in_schema=False)
    app.add_exception_handler(Refused, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _end_request)
    for trouble in (OperationalError, InterfaceError, DatabaseTimeout):
        app.add_exception_handler(trouble, _answer_no_database)
    app.add_exception_handler(Exception, _answer_defect)
    return app


def _services(settings: Settings) -> Services:
    database = Database(settings.data_dir, settings.database_url)
    waiters, known_nodes = Waiters(), NodeCache()
    listener = _Listener(waiters, known_nodes)
    announcer: Announcer = WithinProcess(listener)
    if database.url is not None:
        announcer = ThroughPostgresql(database, listener)
    heartbeats = Heartbeats(database, settings)
    return Services(
        settings,
        database,
        SigningSecret(database),
        waiters,
        announcer,
        Throttle(settings.failures_per_minute),
        DenialSampler(),
        ProxyWatch(),
        Sampler(),
        known_nodes,
        heartbeats,
        Breaks(waiters.__len__),
        cancelled=TasksByNode(),
        unreported=TasksByNode(),
        looks=Batch(partial(look_for, database, settings, heartbeats=heartbeats)),
        in_flight=BodiesInFlight(),
        node_calls=NodeCalls(settings.node_calls_per_minute),
        history=HistoryBudget(settings.task_steps),
        log_bytes=Allowance(
            settings.task_log_bytes,
            3600,
            f"a task's logs are limited to {settings.task_log_bytes} bytes an hour",
        ),
        output_bytes=Allowance(
            settings.task_output_bytes,
            3600,
            f"a task's output is limited to {settings.task_output_bytes} bytes an hour",
        ),
        node_output_bytes=Allowance(
            settings.node_output_bytes,
            3600,
            f"a node's output is limited to {settings.node_output_bytes} bytes an hour"
            " (--node-output-bytes)",
        ),
        node_artifact_bytes=Allowance(
            settings.node_artifact_bytes,
            24 * 3600,
            f"a node's artifacts are limited to {settings.node_artifact_bytes} bytes a day"
            " (--node-artifact-bytes)",
        ),
        output_pace=OutputPace(),
        output_streams=OpenStreams("streams of output"),
        page_streams=OpenStreams("pages"),
        output_writers=CapacityLimiter(OUTPUT_WRITERS),
        reserve=DiskReserve(
            settings.data_dir if database.url is None else None,
            settings.min_free_bytes,
            database.unused_bytes,
        ),
        large_bodies=CapacityLimiter(1),
    )


class _Listener:
    """Passes announcements on to the long polls and the cache of nodes."""

    def __init__(self, waiters: Waiters, known_nodes: NodeCache) -> None:
        self._waiters = waiters
        self._known_nodes = known_nodes

    def work_available(self, work: WorkAvailable) -> None:
        self._waiters.wake(work)

    def node_changed(self, node_id: str) -> None:
        self._known_nodes.forget(node_id)
        self._waiters.forget(node_id)

    def start_over(self) -> None:
        self._known_nodes.clear()
        self._waiters.wake_all()


def _show_contract(request: Request) -> Response:
    return Response(to_yaml(request.app.openapi()), media_type="application/yaml")


def _show_dashboard() -> RedirectResponse:
    return RedirectResponse("/dashboard")


def _checks(services: Services) -> Callable[[str, str], Check | None]:
    """Return what checks the credential of a call before its body is read."""
    with_key = partial(_check, services, check_key)
    checks = {("POST", "/register"): partial(_check, services, check_token)}
    patterns = []
    for route in chain.from_iterable(module.router.routes for module in _ROUTES):
        # The plain routes check it themselves.
        if not isinstance(route, APIRoute) or not route.body_field or route.path in _PLAIN:
            continue
        for method in route.methods or ():
            checks.setdefault((method, route.path), with_key)
            if "{" in route.path:
                patterns.append((method, route.path_regex))

    def check_of(method: str, path: str) -> Check | None:
        if any(method == one and pattern.match(path) for one, pattern in patterns):
            return with_key
        return checks.get((method, path))

    return check_of


async def _check(
    services: Services,
    check: Callable[[Services, Request], Awaitable[str | None]],
    request: Request,
) -> AbstractContextManager[object]:
    declared = request.headers.get("content-length", "")
    largest = reports.MAX_LOG_BYTES if request.url.path == _LOGS else DEFAULT_LIMIT_BYTES
    try:
        caller = await check(services, request)
        if caller is None:
            return nullcontext()
        size = int(declared) if declared.isdecimal() else largest
        return services.in_flight.hold(caller, size)
    except Refused as error:
        _log_refusal(services, request, error)
        raise


async def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, Refused):
        raise error
    _log_refusal(services_of(request.app), request, error)
    content = {"detail": str(error), **error.fields}
    return JSONResponse(content, error.status_code, headers=error.headers)


def _log_refusal(services: Services, request: Request, error: Refused) -> None:
    if isinstance(error, (Invalid, NotFound)):
        return
    client = address_of(request)
    omitted = services.refusals.take((client, error.status_code, str(error)), utc_now())
    if omitted is None:
        return
    event = {
        "status": error.status_code,
        "method": request.method,
        "path": request.url.path[:_LONGEST_PATH],
        "client": client,
        "reason": str(error),
        "omitted": omitted,
    }
    # Two callers who cancel one task are nothing to worry about.
    level = logging.INFO if isinstance(error, Conflict) else logging.WARNING
    log.log(level, "request refused", extra=fields(**event))


async def _answer_no_database(request: Request, error: Exception) -> JSONResponse:
    services = services_of(request.app)
    outage = services.database.outage
    # The next sweep shows whether it is an outage; broken connections are one line a minute.
    if outage.is_open or services.refusals.take(("no database",), utc_now()) is not None:
        reason = str(getattr(error, "orig", error)).strip()
        event = f"the database does not answer: {reason}"
        outage.note(SWEEP, event, services.settings.sweep_every_s)
    detail = "the database does not answer: try again"
    return JSONResponse({"detail": detail}, 503, headers={"Retry-After": "1"})


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    detail = _SENTENCES.get(error.status_code, error.detail)
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(_methods_of(request))}
    return JSONResponse({"detail": detail}, error.status_code, headers=headers)


def _methods_of(request: Request) -> list[str]:
    # Starlette names those of one handler only. A path belongs to the first template that fits it.
    fitting = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.path_regex.match(request.url.path)
    ]
    same = [route for route in fitting if route.path == fitting[0].path]
    return sorted({method for route in same for method in route.methods or ()})


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = error.errors()
    return JSONResponse({"detail": invalid_sentence(errors, len(errors))}, 422)


async def _end_request(_: Request, error: Exception) -> Response:
    log.debug("client hung up while it sent its body: %s", type(error).__name__)
    return Response(status_code=400)


async def _answer_defect(_: Request, error: Exception) -> JSONResponse:
    # The server logs the traceback; the caller gets none of it.
    del error
    return JSONResponse({"detail": "the server failed to answer; its log says why"}, 500)
