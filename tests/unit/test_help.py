"""What --help shows can be searched and copied, however wide the terminal is."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from runner.cli import command
from runner.settings import DEFAULT_IMAGE


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_help_cuts_no_image_name_and_shows_every_default_in_one_form(width: int) -> None:
    shown = CliRunner().invoke(command, ["--help"], env={"COLUMNS": str(width)})

    assert shown.exit_code == 0
    assert DEFAULT_IMAGE in shown.output
    assert "..." not in shown.output.partition("Options:")[2]
    text = " ".join(shown.output.split())
    assert "[default" not in text
    assert "~/.local/state/victoria-runner" in shown.output
    for default in ("(host name)", "~/Victoria", "30", "1G"):
        assert f"default: {default}]" in text
