"""What `cleanup` removes beside containers and folders: old images."""

import os
from functools import partial
from pathlib import Path

import anyio
import pytest

from runner.cleanup import Scope, clean_up
from runner.journal.journal import Journal, open_journal
from runner.model import Assignment, EndReason, Identity, Outcome, Registration
from runner.redaction import Secret
from runner.settings import Settings
from runner.state_dir import prepare_state_dir

URL, IMAGE = "http://orchestrator.example", "registry.example/victoria:latest"
NODE = Identity("node-1", Secret("key"))
PODMAN = """\
#!/bin/sh
case "$1 $5" in
    "images "*) for id in 1 2 3 4 5 6; do echo "sha256:$id <none>"; done ;;
    "image 4") echo '["somebody:1"]' ;;
    "image "*) echo "[]" ;;
    "rmi "*) [ "$3" != 3 ] || { echo "Error: image is in use by a container" >&2; exit 2; } ;;
esac
"""


async def write_journal(journal: Journal) -> None:
    """Write that tasks have run the images 6 to 2 in the past, 6 as the latest."""
    await journal.store_registration(Registration(NODE, {}), URL, 0.0)
    for image_id in "23456":
        await journal.accept(Assignment(image_id, "x", URL, 60), NODE, 1.0)
        await journal.start(image_id, "boot", "podman")
        end = Outcome(EndReason.COMPLETED, "well", 0)
        await journal.end(image_id, end, [], float(image_id), image=(IMAGE, image_id))
        await journal.close(image_id, 10.0)


def test_old_images_are_removed_but_not_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "podman").write_text(PODMAN)
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    prepare_state_dir(state_dir)
    journal, _ = open_journal(state_dir, "now")
    anyio.run(write_journal, journal)
    journal.close_file()
    token = Secret("")
    settings = Settings(
        URL,
        "n",
        victoria_home=tmp_path,
        state_dir=state_dir,
        container_image=IMAGE,
        registration_token=token,
    )

    def removed(*, dry_run: bool) -> tuple[int, list[str]]:
        lines: list[str] = []
        scope = Scope(older_than_days=7, dry_run=dry_run)
        return anyio.run(partial(clean_up, settings, scope, lines.append)), lines

    would = [f"would remove image {number}, unless a container uses it" for number in "432"]
    assert removed(dry_run=True) == (0, would)
    assert removed(dry_run=False) == (0, ["removed image 2"])
