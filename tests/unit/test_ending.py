"""What no message may carry is known as the engines know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.ending import secrets_to_blank, without_secrets
from runner.settings import Secret

if TYPE_CHECKING:
    from pathlib import Path


def test_value_with_a_line_separator_in_it_is_blanked_whole(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("PASSWORD=first-half\u2028second-half\r\n# NOTE=not-a-secret\n")
    known = secrets_to_blank(Secret("registration-token"), env_file=env_file)
    said = "registration-token first-half\u2028second-half second-half not-a-secret"
    assert without_secrets(said, known) == "*** *** second-half not-a-secret"
