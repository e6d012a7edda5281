"""An agent that follows its prompt, with the status reporter as its MCP server.

Called as the stand-in is, and knows its directives. Beside them:

    [call TOOL {JSON}]      call one, with these arguments or none
    [say TEXT]              think aloud

It begins a session in Crush's database with the prompt, and writes its words, its calls and their
results into it, as Crush does. Results go to standard output as well. It calls the reporter through
the SDK's own client.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path

import anyio
import anyio.to_thread
from mcp import Client, StdioServerParameters

from tests.fakes.crush import Crush
from tests.image import victoria_stand_in as stand_in


class Conversation:
    """A session of Crush's, as it is written down."""

    def __init__(self, home: str, prompt: str) -> None:
        self._id = str(uuid.uuid4())
        self._crush = Crush(
            Path(home, ".crush", "crush.db"), now=int(time.time()), prefix=f"{self._id}-"
        )
        self._crush.begin(self._id, prompt=prompt)

    def note(self, kind: str, **data: object) -> None:
        """Add a message of one part."""
        role = "tool" if kind == "tool_result" else "assistant"
        self._crush.say(self._id, [{"type": kind, "data": data}], role=role, at=int(time.time()))


async def work(prompt: str, home: str) -> int:
    """Carry out the directives; return the exit code."""
    conversation = Conversation(home, prompt)
    reporter = StdioServerParameters(
        command="python3", args=["-m", "runner.status_reporter"], env=dict(os.environ)
    )
    held: list[bytearray] = []
    async with Client(reporter) as client:
        for name, value in directives(prompt):
            if name == "fail":
                return int(value)
            if name == "say":
                conversation.note("text", text=value)
            elif name == "call":
                await call(client, conversation, *value.partition(" ")[::2])
            else:
                await anyio.to_thread.run_sync(stand_in.obey, name, value, home, held)
    return 0


async def call(client: Client, conversation: Conversation, tool: str, arguments: str) -> None:
    """Call a tool as Crush does: the call is written down before, its result after."""
    conversation.note("tool_call", id="c", name=tool, input=arguments, finished=True)
    result = await client.call_tool(tool, json.loads(arguments or "{}"))
    (content,) = result.content
    text = getattr(content, "text", "")
    conversation.note("tool_result", tool_call_id="c", name=tool, content=text)
    stand_in.show(f"{tool} answers {text}")


def directives(prompt: str) -> list[tuple[str, str]]:
    """Return the names and values in square brackets."""
    pairs = [part.partition("]")[0].partition(" ")[::2] for part in prompt.split("[")[1:]]
    return [
        (name, value)
        for name, value in pairs
        if name in {"call", "say"} or stand_in.means_something(name, value)
    ]


def main(arguments: list[str]) -> int:
    home = os.environ["VICTORIA_HOME"]
    stand_in.die_on_signals()
    stand_in.mark_start(os.path.join(home, "tasks", stand_in.task_id()))
    return anyio.run(work, stand_in.read_arguments(arguments), home)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
