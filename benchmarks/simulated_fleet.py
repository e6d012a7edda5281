"""A fleet as servers see it: nodes that register, send heartbeats, wait for work, and do none."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import anyio

from benchmarks.connection import CallFailed, Connection
from tools.dev.options import HEARTBEAT_S

WAIT_S = 55
"""As the runner asks for once it knows that the server holds polls."""

KEEPALIVE_S = 60
"""After which the runner closes a connection that it does not use."""
_GROUPS = 100
_REGISTERING_AT_ONCE = 16
_CONNECTING_PER_S = 60
"""So slowly that the pace is known before the second connections of a large fleet add up."""
_AFTER_FAILURE_S = 0.5


@dataclass
class Tally:
    """What has happened so far. Tasks go by their prompts: who creates one learns its id late."""

    calls: int = 0
    failures: list[str] = field(default_factory=list)
    created_at: dict[str, float] = field(default_factory=dict)
    latencies_s: dict[str, float] = field(default_factory=dict)
    """From the call that creates a task to the first assignment of it."""
    nodes: dict[str, set[str]] = field(default_factory=dict)
    """Which nodes were given a task."""
    ended: set[str] = field(default_factory=set)
    """Tasks whose end a node has reported."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a task was given or has ended."""

    @property
    def missing(self) -> set[str]:
        """Tasks that no node was given."""
        return set(self.created_at) - set(self.nodes)

    @property
    def doubles(self) -> set[str]:
        """Tasks that more than one node was given."""
        return {prompt for prompt, nodes in self.nodes.items() if len(nodes) > 1}

    def forget(self) -> None:
        """Begin anew; no task may be under way."""
        self.calls = 0
        for kept in (self.failures, self.created_at, self.latencies_s, self.nodes, self.ended):
            kept.clear()

    def note_given(self, prompt: str, node_id: str) -> None:
        """Note an assignment that has arrived; one that is offered again changes nothing."""
        self.nodes.setdefault(prompt, set()).add(node_id)
        if prompt in self.created_at:
            self.latencies_s.setdefault(prompt, time.monotonic() - self.created_at[prompt])
        self.changed.set()

    def note_ended(self, prompt: str) -> None:
        """Note a task whose end was reported."""
        self.ended.add(prompt)
        self.changed.set()


class Node:
    """A simulated runner: one connection for waiting, one for the rest, as the real one has."""

    def __init__(
        self, number: int, urls: Sequence[str], tally: Tally, heartbeat_s: float | None
    ) -> None:
        """Prepare a node that begins at one of the servers; it beats as often as that one says."""
        self._heartbeat_s = heartbeat_s
        self.group = f"node-{number % _GROUPS:02}-"
        self.name = f"{self.group}{number:05}"
        self.id = self.key = ""
        self.held_task_id: str | None = None
        """For its heartbeats: a task that lasts."""
        self._urls = urls
        self._first = number % len(urls)
        self._tally = tally

    async def register(self, token: str) -> None:
        """Register. Raises CallFailed."""
        connection = Connection(self._urls, self._first, {"X-Registration-Token": token})
        body = {"hostname": "simulated", "os_type": "linux", "name": self.name}
        answer = cast("dict[str, Any]", await connection.call("POST", "/register", body))
        connection.close()
        self.id, self.key = answer["id"], answer["api_key"]
        key = {"X-API-Key": self.key}
        self.waiting = Connection(self._urls, self._first, key)
        self.telling = Connection(self._urls, self._first, key)

    async def work(self) -> None:
        """Ask for work, report what comes as done, and ask again; ends by being cancelled."""
        while True:
            try:
                task = await self.waiting.call("GET", "/tasks/pending", wait_s=WAIT_S)
                self._tally.calls += 1
            except CallFailed as error:
                await self._note(error)
                continue
            if task is not None:
                await self._do(cast("dict[str, Any]", task))

    async def beat(self) -> None:
        """Send heartbeats; ends by being cancelled."""
        # Spread from the first on, as those of hosts are that were started at different times.
        await asyncio.sleep(random.uniform(0, HEARTBEAT_S))  # noqa: S311 - no secret hangs on it
        while True:
            body = {"node_id": self.id, "status": "idle"}
            if self.held_task_id is not None:
                body |= {"status": "busy", "current_task_id": self.held_task_id}
            answer = await self._tell("/nodes/heartbeat", body)
            told_s = answer["heartbeat_interval_seconds"]
            # As the runner spreads them.
            spread = random.uniform(0.9, 1.1)  # noqa: S311 - as above
            pause_s = (self._heartbeat_s or told_s) * spread
            if pause_s > KEEPALIVE_S:
                await asyncio.sleep(KEEPALIVE_S)
                self.telling.close()
                pause_s -= KEEPALIVE_S
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        """Hang up."""
        self.waiting.close()
        self.telling.close()

    async def _do(self, task: dict[str, Any]) -> None:
        self._tally.note_given(task["prompt"], self.id)
        for status in ("running", "success"):
            await self._tell("/status", {"task_id": task["task_id"], "status": status})
        self._tally.note_ended(task["prompt"])

    async def _tell(self, path: str, body: object) -> dict[str, Any]:
        # What a task sends is sent while the node does not wait for another one.
        connection = self.telling if path == "/nodes/heartbeat" else self.waiting
        while True:
            try:
                answer = await connection.call("POST", path, body)
            except CallFailed as error:
                await self._note(error)
                continue
            self._tally.calls += 1
            return cast("dict[str, Any]", answer)

    async def _note(self, error: CallFailed) -> None:
        self._tally.failures.append(str(error))
        await asyncio.sleep(_AFTER_FAILURE_S)


class Fleet:
    """So many nodes, spread over the servers, and somebody who creates tasks for them."""

    def __init__(
        self,
        size: int,
        urls: Sequence[str],
        token: str,
        admin_key: str,
        heartbeat_s: float | None = None,
    ) -> None:
        """Prepare a fleet that is not registered yet."""
        self.tally = Tally()
        self.nodes = [Node(number, urls, self.tally, heartbeat_s) for number in range(size)]
        self._urls = urls
        self._token = token
        self._admin = {"X-API-Key": admin_key}
        self._idle: list[Connection] = []
        self._numbers = count(1)

    async def register(self) -> None:
        """Register all, some at a time. Raises CallFailed."""
        waiting = list(self.nodes)

        async def some() -> None:
            while waiting:
                await waiting.pop().register(self._token)

        await asyncio.gather(*(some() for _ in range(_REGISTERING_AT_ONCE)))

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Have every node wait and beat for as long as the block lasts."""
        loops: list[asyncio.Task[None]] = []
        try:
            for node in self.nodes:
                loops += [asyncio.create_task(node.work()), asyncio.create_task(node.beat())]
                await asyncio.sleep(1 / _CONNECTING_PER_S)
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            for node in self.nodes:
                node.close()
            for admin in self._idle:
                admin.close()

    async def create_tasks(self, per_s: float, seconds: float) -> None:
        """Create tasks at a steady rate: for one node, for one group of them, for any, in turn."""
        begun = time.monotonic()
        creating = []
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(0.0, begun + number / per_s - time.monotonic()))
            creating.append(asyncio.create_task(self._create(next(self._numbers))))
        await asyncio.gather(*creating)

    async def await_ends(self, within_s: float) -> bool:
        """Wait until every created task was given to a node and its end reported, if that comes."""
        with anyio.move_on_after(within_s):
            while not self.tally.ended >= set(self.tally.created_at):
                self.tally.changed.clear()
                await self.tally.changed.wait()
            return True
        return False

    async def _create(self, number: int) -> None:
        node = random.choice(self.nodes)  # noqa: S311 - no secret hangs on it
        prompt = f"simulated {number}"
        for_one, for_group = {"target_node_id": node.id}, {"target_node_name": f"{node.group}*"}
        target: dict[str, str] = (for_one, for_group, {})[number % 3]
        admin = self._idle.pop() if self._idle else Connection(self._urls, number, self._admin)
        self.tally.created_at[prompt] = time.monotonic()
        try:
            await admin.call("POST", "/tasks", {"prompt": prompt, **target})
            self.tally.calls += 1
        except CallFailed as error:
            self.tally.failures.append(str(error))
        self._idle.append(admin)
