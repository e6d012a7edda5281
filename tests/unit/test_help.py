"""What --help shows can be searched and copied, however wide the terminal is."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from runner.cli import command
from runner.settings import DEFAULT_IMAGE


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_help_cuts_no_image_name_and_no_summary(width: int) -> None:
    shown = CliRunner().invoke(command, ["--help"], env={"COLUMNS": str(width)})

    assert shown.exit_code == 0
    assert DEFAULT_IMAGE in shown.output
    assert "~/.local/state/victoria-runner" in shown.output
    assert "..." not in shown.output.partition("Options:")[2]


def test_every_default_is_shown_in_one_form() -> None:
    shown = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "120"})

    text = " ".join(shown.output.split())
    assert "[default" not in text
    assert "; default: (host name)]" in text
    assert "; default: ~/Victoria]" in text
    assert "; default: 30]" in text
    assert "; default: 1G]" in text
