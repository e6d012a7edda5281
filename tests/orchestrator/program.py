"""The orchestrator as a program, in a process of its own."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import click
import httpx
from click.testing import CliRunner
from typing_extensions import Self

from tests.orchestrator.serving import DEADLINE_S

REPOSITORY = Path(__file__).parents[2]
TOKEN, ADMIN_KEY = "the-token-from-outside-of-it", "the-admin-key-from-outside"
SECRETS = {"REGISTRATION_TOKEN": TOKEN, "ADMIN_API_KEY": ADMIN_KEY}
DATABASE_URL = "VICTORIA_ORCHESTRATOR_DATABASE_URL"
UNREACHABLE = "postgresql://user:the-password@127.0.0.1:1/name"


class Program:
    """`python -m orchestrator` on a free port; its standard output is a pipe or a terminal."""

    def __init__(
        self,
        data_dir: Path,
        environment: Mapping[str, str] = SECRETS,
        *options: str,
        has_terminal: bool = False,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self._log = data_dir.with_name("orchestrator.log").open("w+")
        reading, writing = pty.openpty() if has_terminal else os.pipe()
        command = (sys.executable, "-m", "orchestrator", "--port=0", f"--data-dir={data_dir}")
        self.process = subprocess.Popen(
            [*prefix, *command, *options],
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], **environment},
            stdout=writing,
            stderr=self._log,
        )
        os.close(writing)
        self._output = os.fdopen(reading, "r")
        self.lines = list(self._lines_of_start())
        """Its lines on standard output, down to the one with its address."""
        self.url = self.lines[-1].removeprefix("listening on ") if self.lines else ""
        self._stack = ExitStack()

    def _lines_of_start(self) -> Iterator[str]:
        with suppress(OSError):  # a terminal whose other end is closed
            while line := self._output.readline():
                yield line.rstrip("\n")
                if line.startswith("listening on "):
                    return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.end()
        self._output.close()
        self._log.close()

    def wait(self) -> tuple[int, str]:
        code = self.process.wait(DEADLINE_S)
        self._log.seek(0)
        return code, self._log.read()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.wait()

    def client(self, key: str = ADMIN_KEY, **headers: str) -> httpx.Client:
        headers = {"X-API-Key": key, **headers}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=90, trust_env=False)
        return self._stack.enter_context(client)

    def register(self, token: str = TOKEN) -> httpx.Response:
        headers, body = {"X-Registration-Token": token}, {"hostname": "h", "os_type": "linux"}
        url = f"{self.url}/register"
        return httpx.post(url, headers=headers, json=body, timeout=DEADLINE_S, trust_env=False)


def cut_words(program: click.Group, width: int) -> list[str]:
    """Return the words of its options' help that --help cuts on a terminal of this width."""
    cut: list[str] = []
    for command, arguments in ((program, []), *((c, [n]) for n, c in program.commands.items())):
        shown = CliRunner().invoke(program, [*arguments, "--help"], env={"COLUMNS": str(width)})
        assert shown.exit_code == 0
        options = [option for option in command.params if isinstance(option, click.Option)]
        texts = [text for option in options for text in (option.help, option.default)]
        words = " ".join(text for text in texts if isinstance(text, str)).split()
        cut += [word for word in words if word not in shown.output]
    return cut


def refused_start(data_dir: Path, environment: Mapping[str, str], *options: str) -> tuple[int, str]:
    """Return the exit code and the only line of a start that fails."""
    with Program(data_dir, environment, *options) as program:
        code, log = program.wait()
        assert program.lines == []
    assert log.count("\n") == 1, log
    return code, log.strip()
