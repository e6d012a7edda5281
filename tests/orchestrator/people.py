"""The command line as people use it, in the test's process."""

import json
from typing import Any

from click.testing import CliRunner, Result

from orchestrator.cli import command


class Person:
    """Calls commands, with an URL and a key in the environment."""

    def __init__(self, url: str, key: str = "the-key") -> None:
        self._environment = {
            "VICTORIA_ORCHESTRATOR_URL": url,
            "VICTORIA_ORCHESTRATOR_API_KEY": key,
        }

    def tries(self, *arguments: str, stdin: str | bytes = "", **environment: str) -> Result:
        variables = {**self._environment, **environment}
        result = CliRunner().invoke(command, arguments, input=stdin, env=variables)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def does(self, *arguments: str, stdin: str | bytes = "", **environment: str) -> str:
        """Return what a command that succeeds prints."""
        result = self.tries(*arguments, stdin=stdin, **environment)
        assert result.exit_code == 0, result.output
        return result.stdout

    def reads(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Return what a command prints with --json."""
        return json.loads(self.does(*arguments, "--json"))

    def reads_lines(self, *arguments: str) -> list[Any]:
        """Return the lines of JSON that a command prints with --json."""
        return [json.loads(line) for line in self.does(*arguments, "--json").splitlines()]

    def refused(self, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """Return the exit code and the sentence of a command that fails."""
        result = self.tries(*arguments, stdin=stdin)
        assert result.exit_code != 0, result.output
        return result.exit_code, result.stderr.strip().splitlines()[-1]
