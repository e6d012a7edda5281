"""Several server processes on one machine: started, watched and stopped by this one.

Each worker listens on the same address with a socket of its own (SO_REUSEPORT), so that the kernel
spreads connections evenly. The workers share the database and nothing else.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from orchestrator.errors import ConfigurationError
from orchestrator.log import fields
from orchestrator.server import bind, url_of

_RESTART_FIRST_S, _RESTART_CEILING_S = 1.0, 30.0
_STABLE_AFTER_S = 60.0
"""A worker that has run for so long is restarted without a longer pause."""
_LOOK_EVERY_S = 0.1
_STOP_WITHIN_S = 15.0
"""More than a worker takes to answer its requests when it stops."""

ServeWorker = Callable[[int, socket.socket, Callable[[], None]], None]
"""Serves as worker number N on the listener; calls the function once it listens."""

log = logging.getLogger(__name__)


@dataclass
class _Worker:
    number: int
    failures: int = 0
    pid: int | None = None
    ready: int | None = None
    """A pipe that the worker writes to once it listens."""
    started_at_s: float = 0.0
    starts_at_s: float = 0.0


class Workers:
    """So many workers on one address; one that dies is started again."""

    def __init__(self, count: int, host: str, port: int) -> None:
        """Reserve the address. Raises ConfigurationError if it is in use."""
        self._reserved = _reserve(host, port)
        self._workers = [_Worker(number) for number in range(count)]
        self._is_stopping = False
        self._stop_reason = "a worker did not start"
        # Its writing end closes with this process, however it ends.
        self._alive, self._alive_here = os.pipe()

    def run(self, serve: ServeWorker, on_listening: Callable[[str], None]) -> int:
        """Run the workers until a signal; return the exit code.

        `on_listening` gets the URL once all of them listen. If one ends before that, all stop, and
        its exit code is returned.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        listening: set[int] = set()
        exit_code = 0
        is_announced = False
        while not self._is_stopping:
            for worker in self._workers:
                if worker.pid is None and time.monotonic() >= worker.starts_at_s:
                    self._start(worker, serve)
                if _is_ready(worker):
                    listening.add(worker.number)
            if not is_announced and len(listening) == len(self._workers):
                is_announced = True
                on_listening(url_of(self._reserved))
            for worker, code in self._ended():
                if not is_announced and not self._is_stopping:
                    exit_code, self._is_stopping = code or 1, True
                elif not self._is_stopping:
                    self._plan_restart(worker, code)
            time.sleep(_LOOK_EVERY_S)
        self._end_all()
        log.info("workers stopped", extra=fields(reason=self._stop_reason))
        return exit_code

    def _start(self, worker: _Worker, serve: ServeWorker) -> None:
        reading, writing = os.pipe()
        worker.started_at_s = time.monotonic()
        worker.pid = os.fork()
        if worker.pid:
            os.close(writing)
            os.set_blocking(reading, False)
            worker.ready = reading
            return
        code = 1
        try:
            os.close(self._alive_here)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: sys.exit(0))
            threading.Thread(target=_end_with_parent, args=(self._alive,), daemon=True).start()
            # It listens only once the application is there.
            listener = _shared(self._reserved.family, self._reserved.getsockname())
            serve(worker.number, listener, lambda: _write_byte(writing))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            log.exception("worker failed", extra=fields(worker=worker.number))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _ended(self) -> list[tuple[_Worker, int]]:
        ended = []
        for worker in self._workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = None
                if worker.ready is not None:
                    os.close(worker.ready)
                    worker.ready = None
                ended.append((worker, os.waitstatus_to_exitcode(status)))
        return ended

    def _plan_restart(self, worker: _Worker, code: int) -> None:
        lived_s = time.monotonic() - worker.started_at_s
        worker.failures = 1 if lived_s > _STABLE_AFTER_S else worker.failures + 1
        pause_s = min(_RESTART_FIRST_S * 2.0 ** (worker.failures - 1), _RESTART_CEILING_S)
        worker.starts_at_s = time.monotonic() + pause_s
        event = {"worker": worker.number, "exit_code": code, "restart_in_s": pause_s}
        log.error("worker died", extra=fields(**event))

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stop_reason = signal.Signals(number).name
        self._is_stopping = True

    def _end_all(self) -> None:
        ends_at_s = time.monotonic() + _STOP_WITHIN_S
        while any(worker.pid for worker in self._workers):
            # Again and again: one that was being made may have missed the first.
            is_over = time.monotonic() > ends_at_s
            self._signal(signal.SIGKILL if is_over else signal.SIGTERM)
            self._ended()
            time.sleep(_LOOK_EVERY_S)
        self._reserved.close()

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)


def _reserve(host: str, port: int) -> socket.socket:
    # Without SO_REUSEPORT, binding fails if anybody else has the address.
    with bind(host, port) as alone:
        family, address = alone.family, alone.getsockname()
    return _shared(family, address)


def _shared(family: int, address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0).lower()
        raise ConfigurationError(f"cannot listen on {address[0]}: {reason}") from error
    return listener


def _is_ready(worker: _Worker) -> bool:
    if worker.ready is None:
        return False
    try:
        return bool(os.read(worker.ready, 1))
    except BlockingIOError:
        return False


def _write_byte(pipe: int) -> None:
    os.write(pipe, b"1")


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
