"""The identity file is whole, its owner's alone, and damaged it stops nobody."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import ConfigurationError
from runner.identity import IDENTITY_NAME, IdentityFile
from runner.model import Identity, Registration
from runner.redaction import Secret

URL, OTHER_URL = "https://o.example.com", "https://other.example.com"
KEY = "node-key-1"
NODE = {"name": "n-1", "tags": {"env": "prod"}}
FIRST = Registration(Identity("node-1", Secret(KEY)), NODE)
SECOND = Registration(Identity("node-2", Secret("node-key-2")), None)


@pytest.fixture
def file(tmp_path: Path) -> IdentityFile:
    return IdentityFile(tmp_path)


def test_each_orchestrator_has_its_identity(file: IdentityFile) -> None:
    assert file.read() == {}
    file.store(URL, FIRST)
    file.store(OTHER_URL, SECOND)
    assert file.read() == {URL: FIRST, OTHER_URL: SECOND}
    file.store(URL, SECOND)
    assert file.read() == {URL: SECOND, OTHER_URL: SECOND}
    assert [path.name for path in file.path.parent.iterdir()] == [IDENTITY_NAME]


def test_file_is_for_its_owner_alone_and_is_written_only_to_change_that(file: IdentityFile) -> None:
    before = os.umask(0)
    try:
        file.store(URL, FIRST)
    finally:
        os.umask(before)
    written = file.path.stat()
    assert written.st_mode & 0o777 == 0o600
    file.store(URL, FIRST)
    assert file.path.stat().st_ino == written.st_ino
    file.path.chmod(0o644)
    assert not file.is_private()
    file.store(URL, FIRST)
    assert file.is_private()


def link(path: Path) -> None:
    path.with_name("target").write_text(json.dumps({"identities": {}}))
    path.symlink_to("target")


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "link": link,
    "pipe": os.mkfifo,
    "nothing": lambda path: path.touch(),
    "half": lambda path: path.write_text('{"identities": {"https://o'),
    "not Unicode": lambda path: path.write_bytes(b"\xff\xfe"),
    "list": lambda path: path.write_text("[]"),
    "no key": lambda path: path.write_text('{"identities": {"u": {"node_id": "n", "node": null}}}'),
    "number": lambda path: path.write_text(
        '{"identities": {"u": {"node_id": "n", "api_key": 7, "node": null}}}'
    ),
}


@pytest.mark.parametrize("made", IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_what_is_not_a_file_of_ours_is_a_sentence_and_is_replaced(
    file: IdentityFile, made: Callable[[Path], object]
) -> None:
    made(file.path)
    with pytest.raises(ConfigurationError, match=f"^cannot read {file.path}: .*writes"):
        file.read()
    file.store(URL, FIRST)
    assert file.read() == {URL: FIRST}
    target = file.path.with_name("target")
    assert not target.exists() or KEY not in target.read_text()


def test_file_that_cannot_be_written_is_as_it_was(file: IdentityFile) -> None:
    file.store(URL, FIRST)
    (file.path.parent / f"{IDENTITY_NAME}.part" / "in the way").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=f"^cannot write {file.path}: ") as caught:
        file.store(URL, SECOND)
    assert "node-key" not in str(caught.value)
    assert file.read() == {URL: FIRST}
