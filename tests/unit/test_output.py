"""A container's output is read on from any place, and redacted as one stream."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.engine.base import GAP_MARK, OutputPosition
from runner.engine.output import LogCommandReader, LogFileReader
from runner.redaction import encoded_forms, redact_stream

pytestmark = pytest.mark.anyio
SECRETS = ["password1", "password12345", 'say "please" twice', "aabaabaab"]
FORMS = encoded_forms(SECRETS)


def in_parts(text: str, sizes: Iterator[int]) -> str:
    output, rest, pending = "", text, ""
    while rest:
        size = next(sizes)
        pending, rest = pending + rest[:size], rest[size:]
        shown, used = redact_stream(pending, FORMS, is_end=not rest)
        output, pending = output + shown, pending[used:]
    assert not pending
    return output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a password1 and password12345.", "a *** and ***."),
        ("pass\x1b[31mword\x1b[0m1!", "***\x1b[31m\x1b[0m!"),
        ("\x1b]0;a title password1\x07x\x1b[2Ky\x1b[1;31mred\x1b[0m", "xy\x1b[1;31mred\x1b[0m"),
        ("pass\bword1 \0 a\tb\r\n", "***  a\tb\r\n"),
        ("aabaabaabaab", "***aab"),
        ('say "please" twi', 'say "please" twi'),
        ("\x1b[1m\x1b[31m\x1b[0mplain", "\x1b[1m\x1b[31m\x1b[0mplain"),
    ],
    ids=[
        *("longest", "colour within", "what a terminal obeys", "control", "overlap", "unfinished"),
        "order of colours",
    ],
)
def test_stream_is_redacted_the_same_wherever_it_is_cut(text: str, expected: str) -> None:
    assert in_parts(text, iter([len(text)])) == expected
    draw = random.Random(1)  # noqa: S311 - the same each time
    for _ in range(100):
        assert in_parts(text, iter(lambda: draw.randint(1, 7), 0)) == expected


def log_of(second: int, *lines: str) -> bytes:
    return "".join(
        f"2026-11-29T12:00:{second:02}.{number:09}+00:00 {line}\n"
        for number, line in enumerate(lines)
    ).encode()


class Follower:
    """Reads a log to its present end, at most so many bytes at a time."""

    def __init__(self, reader: LogFileReader | LogCommandReader, max_bytes: int = 3) -> None:
        self._reader = reader
        self._max_bytes = max_bytes
        self.position = OutputPosition()

    async def rest(self) -> bytes:
        output = b""
        has_more = True
        while has_more:
            part = await self._reader.read(self.position, self._max_bytes)
            data, has_more = b"".join(piece for _, piece in part.pieces), part.has_more
            # Where more follows, a byte is held back, as the beginning of a secret is.
            used = max(1, len(data) - 1) if has_more else len(data)
            output += data[:used]
            if data:
                self.position = part.position_of(used)
        return output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ctr.log"


def replace_log(path: Path, data: bytes) -> None:
    """Put another file in the place of the log, as conmon does when it is full."""
    path.with_suffix(".tmp").write_bytes(data)
    path.with_suffix(".tmp").rename(path)


async def test_log_file_is_read_on_over_the_file_that_takes_its_place(path: Path) -> None:
    replace_log(path, log_of(1, "stdout F one", "stderr P tw") + b"2026 stdout F unfin")
    reader = LogFileReader(path)
    follower = Follower(reader)
    assert await follower.rest() == b"one\ntw"
    with path.open("ab") as file:
        file.write(b"ished\n")
    replace_log(path, log_of(2, "stderr F o", "stdout F three"))
    assert await follower.rest() == b"unfinished\no\nthree\n"
    replace_log(path, log_of(3, "stdout F four"))
    await reader.look()
    replace_log(path, log_of(4, "stdout F five"))
    reader.close()
    assert await follower.rest() == GAP_MARK + b"five\n"
    reader.close()


async def test_log_files_that_came_and_went_unread_are_a_gap(path: Path) -> None:
    replace_log(path, log_of(1, "stdout F one"))
    reader = LogFileReader(path)
    follower = Follower(reader)
    await follower.rest()
    for second in (2, 3, 4):
        replace_log(path, log_of(second, f"stdout F {second}"))
        await reader.look()
    assert await follower.rest() == GAP_MARK + b"4\n"
    reader.close()


async def test_printed_log_is_read_on_by_the_moments_of_its_entries() -> None:
    long = "x" * (16 << 10)
    moment = "2026-11-29T12:00:01.000000001Z"
    printed = f"{moment} one\n{moment} two\n{moment} {long}{moment} end\n".encode()
    asked: list[str] = []

    async def fetch(since: str, max_bytes: int) -> tuple[bytes, bool]:
        asked.append(since)
        cut = printed[:max_bytes]
        return cut[: cut.rfind(b"\n") + 1], len(printed) > max_bytes

    follower = Follower(LogCommandReader(fetch), 100)
    assert await follower.rest() == f"one\ntwo\n{long}end\n".encode()
    assert set(asked[1:]) == {moment}
    printed += b"2026-11-29T12:00:02.000000000Z three\n"
    assert await follower.rest() == b"three\n"
    printed = b"2026-11-29T12:00:03.000000000Z four\n"
    assert await follower.rest() == GAP_MARK + b"four\n"
