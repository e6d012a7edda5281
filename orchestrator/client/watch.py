"""`task watch`: a task's output and steps until it ends; the exit code is its outcome."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import click
import httpx

from orchestrator.client import show
from orchestrator.client.api import CONNECT_TIMEOUT_S, Api, Json, task_path
from orchestrator.client.connect import connect
from orchestrator.client.errors import Unavailable
from orchestrator.client.events import Event, parse_events, split_lines
from orchestrator.client.text import OutputFilter, one_line

EXIT_CODES = {"success": 0, "error": 1, "cancelled": 3}
"""By the status of the task's end. 2 and 4 are mistakes and refusals, see errors."""
POLL_S = 2.0
"""Between two looks at a task whose output cannot be watched."""
MAX_SILENCE_S = 30.0
"""Without a byte for so long, the connection is made anew: it may be dead."""
LOOK_EVERY_S = 10.0
"""Between two looks at the steps of a task whose output is being watched."""
END_WITHIN_S = 120.0
"""After a task has ended, how long what is left of its output is waited for. The reference
orchestrator waits for its node itself, a minute at most."""
RECONNECT_S = 0.5
"""Until a stream that has ended without the task is asked for again."""
MAX_BACKOFF_S = 15.0
STARTS_OVER = "the task was assigned again: its output starts over"
_TAIL_CHARS = 32_768
"""The end of what was shown: a runner puts up to 4,000 characters of it into its message."""

T = TypeVar("T")

_KINDS = "text/event-stream"


@click.command()
@click.argument("task_id")
@show.json_option
def watch(task_id: str, *, as_json: bool) -> None:
    """Show a task's output while it runs, until it ends.

    The output goes to standard output, the steps of the task to standard error. Exit codes: 0 if
    the task succeeds, 1 if it fails, 3 if it is cancelled. Ctrl-C stops watching, not the task.
    With --json each event is a line of JSON.
    """
    sys.exit(watch_task(connect(), task_id, as_json=as_json))


def watch_task(
    api: Api, task_id: str, *, as_json: bool = False, end_within_s: float = END_WITHIN_S
) -> int:
    """Watch a task to its end; return the exit code of its outcome. Raises ClientError."""
    return _Watch(api, task_id, end_within_s, as_json=as_json).run()


class _Watch:
    """One task, as far as it has been shown."""

    def __init__(self, api: Api, task_id: str, end_within_s: float, *, as_json: bool) -> None:
        self._api = api
        self._task_id = task_id
        self._end_within_s = end_within_s
        self._what = f"watch task {task_id}"
        self._as_json = as_json
        self._filter = OutputFilter(has_colours=not as_json and show.has_colours())
        self._offset = 0
        """Bytes of the output that have been shown, as the orchestrator counts them."""
        self._stream_offset = 0
        """The same of what has come in with the stream that is open."""
        self._is_stale = False
        """Whether that stream is of an output that the orchestrator has discarded."""
        self._tail = ""
        self._steps = 0
        self._status = ""
        self._waiting = ""
        self._failures = 0
        self._has_output = True
        self._looked_at = 0.0
        self._ended_at: float | None = None
        """When the task was first seen to have ended."""

    def run(self) -> int:
        """Return the exit code of the task's outcome."""
        has_ended = False
        while True:
            task = self._reached(self._look)
            if task is None:
                continue
            has_ended &= not self._is_stale
            if has_ended or self._is_over(task):
                return self._end(task)
            if self._has_output:
                has_ended = self._reached(self._stream) or False
            else:
                time.sleep(POLL_S)

    def _is_over(self, task: Json) -> bool:
        """Return whether a task has ended, and no more of its output is to be waited for."""
        if task.get("status") not in EXIT_CODES:
            return False
        if not self._has_output:
            return True
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now
        is_over = now - self._ended_at >= self._end_within_s
        if is_over:
            show.note("what is left of its output does not come")
        return is_over

    def _reached(self, call: Callable[[], T]) -> T | None:
        """Return what a call returns; wait and return None if the orchestrator is away."""
        try:
            return call()
        except Unavailable as error:
            if not self._failures:
                show.note(f"{error.message}; trying again")
            self._failures += 1
            backoff = min(MAX_BACKOFF_S, 2.0 ** min(self._failures, 6) / 2)
            time.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311 - spreads retries
            return None

    def _look(self) -> Json:
        """Return the task, after its new steps were shown. Raises ClientError."""
        task = self._api.json(self._what, "GET", task_path(self._task_id))
        if not self._has_output:
            self._failures = 0
        self._looked_at = time.monotonic()
        history = task.get("history")
        steps = history if isinstance(history, list) else []
        if not steps and task.get("status") != self._status:
            steps = [{"status": task.get("status")}]
            self._steps = 0
        for step in steps[self._steps :]:
            if step.get("status") == "pending" and self._status:
                self._start_over()
            self._show_step(step)
        self._steps = len(steps)
        self._status = str(task.get("status"))
        waiting = str(task.get("waiting") or "")
        if waiting and waiting != self._waiting:
            self._print_note({"event": "waiting", "message": waiting}, show.waiting_text(waiting))
        self._waiting = waiting
        return task

    def _stream(self) -> bool:
        """Show the output as it comes; return whether the task has ended. Raises ClientError."""
        path = task_path(self._task_id)
        self._stream_offset, self._is_stale = 0, False
        headers = {"Accept": _KINDS}
        if self._offset:
            headers["Last-Event-ID"] = str(self._offset)
        request = self._api.http.stream(
            "GET",
            f"{path}/output",
            params={"offset": self._offset},
            headers=headers,
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=MAX_SILENCE_S),
        )
        try:
            with self._api.reaching(self._what), suppress(httpx.ReadTimeout), request as response:
                if not self._is_stream(response):
                    self._has_output = False
                    note = "this orchestrator does not show output: only the task's steps follow"
                    show.note(note)
                    return False
                self._failures = 0
                for event in parse_events(split_lines(response.iter_text())):
                    if self._take(event):
                        return True
                    if self._is_stale:
                        return False
        finally:
            sys.stdout.flush()
        # A proxy ends streams that last, or that are silent.
        time.sleep(RECONNECT_S)
        return False

    def _is_stream(self, response: httpx.Response) -> bool:
        """Return whether it is a stream of output. Raises ClientError for other refusals."""
        if response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}:
            return False
        self._api.require_success(self._what, response)
        return str(response.headers.get("content-type", "")).startswith(_KINDS)

    def _take(self, event: Event) -> bool:
        """Show an event; return whether it is the end."""
        if not event.name:
            # Comments come often, and each look is an entry of the audit.
            if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
                return self._is_over(self._look())
            return False
        if event.name == "end":
            return True
        if event.name == "output":
            self._take_chunk(event)
        return False

    def _take_chunk(self, event: Event) -> None:
        """Show what is new in a chunk of output, unless it is found to be stale."""
        try:
            chunk = json.loads(event.data)
            begin, text = int(chunk["offset"]), str(chunk["text"])
            end = int(event.id or begin + len(text.encode(errors="surrogatepass")))
        except (ValueError, TypeError, KeyError) as error:
            raise Unavailable(f"cannot {self._what}: an event cannot be read: {error}") from error
        self._failures = 0
        if not self._offset or begin < self._stream_offset:
            # The task may have been assigned again since the last look.
            self._look()
            if self._is_stale:
                return
        self._stream_offset = end
        if end <= self._offset:
            return
        if begin < self._offset:
            # A repeat with more at its end: what is new is shown.
            raw = text.encode(errors="surrogatepass")[self._offset - begin :]
            text = raw.decode(errors="replace")
        elif begin > self._offset:
            text = f"\n[{begin - self._offset} bytes are missing here]\n{text}"
        self._offset = end
        self._tail = (self._tail + text)[-_TAIL_CHARS:]
        if self._as_json:
            _print_line({"event": "output", "offset": begin, "text": text})
        else:
            click.echo(self._filter.feed(text), nl=False)

    def _start_over(self) -> None:
        """Show once that the output so far was of an assignment whose output is discarded."""
        self._is_stale = True
        if not self._offset:
            return
        self._offset = 0
        if self._as_json:
            _print_line({"event": "restart", "message": STARTS_OVER})
        else:
            click.echo(f"{self._filter.end()}\n[{STARTS_OVER}]")

    def _end(self, task: Json) -> int:
        status = str(task.get("status"))
        if self._as_json:
            _print_line({"event": "end", "task": task})
        else:
            click.echo(self._filter.end(), nl=False)
            message = str(task.get("error_message") or task.get("result") or "")
            head, _, rest = message.partition("\n")
            if rest and self._ends_with(rest):
                message = head  # What follows are the last lines, which were just shown.
            took = show.between(task.get("started_at"), task.get("completed_at"))
            after = f" after {took}" if task.get("started_at") else ""
            show.note(f"{status}{after}{': ' if message else ''}{message}")
        return EXIT_CODES.get(status, 1)

    def _ends_with(self, text: str) -> bool:
        """Return whether what was shown ends with a text, which may be truncated at its start."""
        shown = OutputFilter(has_colours=False).feed(self._tail)
        return shown.rstrip().endswith(text.removeprefix("…").rstrip())

    def _show_step(self, step: Json) -> None:
        status, message = str(step.get("status")), one_line(str(step.get("message") or ""))
        if status in EXIT_CODES:
            return  # The end shows it.
        event = {"event": "status", "status": status, "message": message}
        self._print_note(event, f"{status}{': ' if message else ''}{message}")

    def _print_note(self, event: Json, sentence: str) -> None:
        if self._as_json:
            _print_line(event)
        else:
            show.note(sentence)


def _print_line(event: Json) -> None:
    click.echo(json.dumps(event, ensure_ascii=sys.stdout.isatty()))
