"""An assignment is checked before anything of it becomes a path or an argument."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.api.assignment import (
    DEFAULT_TIMEOUT_S,
    MAX_FILES,
    MAX_PROMPT_BYTES,
    MAX_TIMEOUT_S,
    parse_assignment,
)
from runner.errors import BadAssignment
from runner.model import Assignment, EndReason, TaskFile

TASK_ID = "11111111-2222-4333-8444-555555555555"
URL = "https://orchestrator.example.com"
SHA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def raw(**changed: object) -> dict[str, object]:
    """Return a good assignment with some fields changed."""
    return {"task_id": TASK_ID, "prompt": "count the rows", "orchestrator_url": URL, **changed}


def parse(**changed: object) -> Assignment:
    return parse_assignment(raw(**changed), orchestrator_url="https://fallback.example.com")


def sentence(**changed: object) -> str:
    with pytest.raises(BadAssignment) as caught:
        parse(**changed)
    assert caught.value.reason is EndReason.REJECTED
    return str(caught.value)


# What is taken


def test_smallest_assignment_is_a_prompt_with_an_id() -> None:
    assert parse_assignment(
        {"task_id": TASK_ID, "prompt": "count"}, orchestrator_url=URL
    ) == Assignment(TASK_ID, "count", URL, 3600)


def test_fields_nobody_has_heard_of_are_left_alone() -> None:
    assert parse(priority=10, job_id=None).prompt == "count the rows"


@pytest.mark.parametrize("missing", [{}, {"timeout_seconds": None}])
def test_missing_or_null_timeout_is_an_hour(missing: dict[str, None]) -> None:
    assert parse(**missing).timeout_s == DEFAULT_TIMEOUT_S == 3600


@pytest.mark.parametrize("seconds", [1, 0.5, 3, 7200, MAX_TIMEOUT_S])
def test_timeout_is_taken_in_seconds(seconds: float) -> None:
    assert parse(timeout_seconds=seconds).timeout_s == seconds


def test_url_of_the_assignment_stands() -> None:
    assert parse(orchestrator_url="http://10.0.0.1:8000/x").orchestrator_url == (
        "http://10.0.0.1:8000/x"
    )


def test_configured_url_stands_in_for_a_missing_one() -> None:
    assert parse(orchestrator_url=None).orchestrator_url == "https://fallback.example.com"


@pytest.mark.parametrize("task_id", ["1", "a" * 128, "Task_1.b-2", TASK_ID.upper()])
def test_task_id_need_not_be_a_uuid(task_id: str) -> None:
    assert parse(task_id=task_id).task_id == task_id


@pytest.mark.parametrize(
    "prompt", ["--help", "$(reboot); `id`", "two\nlines\t", "naïve 数据 🚀", "x" * MAX_PROMPT_BYTES]
)
def test_prompt_is_taken_as_it_is(prompt: str) -> None:
    assert parse(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    "name", ["a", "sales.csv", "two words", "Umsätze.csv", "100%#?&", "-rf", "...", "~", "n" * 255]
)
def test_plain_file_name_is_taken(name: str) -> None:
    assert parse(files=[name]).files == (TaskFile(name, None),)


@pytest.mark.parametrize("name", ["NUL", "con.txt", "Lpt1"])
def test_names_of_devices_elsewhere_are_plain_names_on_linux(name: str) -> None:
    assert parse(files=[name]).files == (TaskFile(name, None),)


@pytest.mark.parametrize("names", [["a.csv", "A.csv"], ["\u00fc", "u\u0308"]])
def test_names_that_differ_by_a_byte_are_two_files(names: list[str]) -> None:
    assert [file.name for file in parse(files=names).files] == names


def test_checksums_belong_to_the_files_in_their_order() -> None:
    other = "0" * 64

    assert parse(files=["a", "b"], file_checksums=[SHA, other]).files == (
        TaskFile("a", SHA),
        TaskFile("b", other),
    )


def test_checksum_in_capitals_is_the_same_checksum() -> None:
    assert parse(files=["a"], file_checksums=[SHA.upper()]).files == (TaskFile("a", SHA),)


@pytest.mark.parametrize("none", [None, []])
def test_orchestrator_without_checksums_gives_none(none: object) -> None:
    assert parse(files=["a"], file_checksums=none).files == (TaskFile("a", None),)


@pytest.mark.parametrize("none", [None, []])
def test_task_may_come_without_files(none: object) -> None:
    assert parse(files=none, file_checksums=none).files == ()


def test_as_many_files_as_allowed_are_taken() -> None:
    assert len(parse(files=[f"f{number}" for number in range(MAX_FILES)]).files) == MAX_FILES


# What is not, and why


@pytest.mark.parametrize("given_", [None, [], "task", 7, True, [raw()]])
def test_anything_but_an_object_is_no_assignment(given_: object) -> None:
    with pytest.raises(BadAssignment) as caught:
        parse_assignment(given_, orchestrator_url=URL)

    assert str(caught.value) == "cannot read the assignment: it is not a JSON object"
    assert caught.value.task_id is None


@pytest.mark.parametrize(
    "task_id",
    [
        None,
        "",
        7,
        ["t-1"],
        ".",
        "..",
        "../../etc",
        "a/b",
        "a\\b",
        "-rf",
        ".hidden",
        "a b",
        "a\n",
        "a\x00",
        "tâche",
        "١٢٣",
        "a" * 129,
        "$(id)",
    ],
)
def test_unusable_task_id_is_named_and_told_to_nobody(task_id: object) -> None:
    with pytest.raises(BadAssignment) as caught:
        parse(task_id=task_id)

    assert str(caught.value) == (
        "cannot read the assignment: its task_id must be 1 to 128 letters, digits, dots, "
        "dashes or underscores"
    )
    assert caught.value.task_id is None


def test_assignment_without_a_task_id_is_told_to_nobody() -> None:
    with pytest.raises(BadAssignment) as caught:
        parse_assignment({"prompt": "count"}, orchestrator_url=URL)

    assert caught.value.task_id is None


TOO_MUCH = "and 131071 is the most that a command line takes; send the text as a file"

BROKEN: list[tuple[str, object, str]] = [
    ("prompt", None, "its prompt is missing or empty"),
    ("prompt", "", "its prompt is missing or empty"),
    ("prompt", " \n\t", "its prompt is missing or empty"),
    ("prompt", ["count"], "its prompt is missing or empty"),
    ("prompt", 7, "its prompt is missing or empty"),
    ("prompt", "a\x00b", "its prompt has a NUL character in it"),
    ("prompt", "half \ud83d", "its prompt is not valid Unicode"),
    (
        "prompt",
        "x" * 3_000_000,
        f"its prompt has 3000000 bytes {TOO_MUCH}",
    ),
    (
        "prompt",
        "ü" * 65_536,
        f"its prompt has 131072 bytes {TOO_MUCH}",
    ),
    ("orchestrator_url", "", "its orchestrator_url is not a URL"),
    ("orchestrator_url", 7, "its orchestrator_url is not a URL"),
    ("orchestrator_url", "https://a b", "its orchestrator_url is not a URL"),
    ("orchestrator_url", "https://a\nX=1", "its orchestrator_url is not a URL"),
    ("orchestrator_url", "https://" + "a" * 2000, "its orchestrator_url is not a URL"),
    ("orchestrator_url", "ftp://a", "its orchestrator_url is not an http or https URL"),
    ("orchestrator_url", "file:///etc/passwd", "its orchestrator_url is not an http or https URL"),
    ("orchestrator_url", "https://", "its orchestrator_url is not an http or https URL"),
    ("orchestrator_url", "https://[::1", "its orchestrator_url is not an http or https URL"),
    ("timeout_seconds", "60", "its timeout_seconds is not a number"),
    ("timeout_seconds", True, "its timeout_seconds is not a number"),
    ("timeout_seconds", [], "its timeout_seconds is not a number"),
    ("timeout_seconds", 0, "its timeout_seconds must lie between 0 and 31622400"),
    ("timeout_seconds", -5, "its timeout_seconds must lie between 0 and 31622400"),
    ("timeout_seconds", 10**400, "its timeout_seconds must lie between 0 and 31622400"),
    ("timeout_seconds", float("nan"), "its timeout_seconds must lie between 0 and 31622400"),
    ("timeout_seconds", float("inf"), "its timeout_seconds must lie between 0 and 31622400"),
    ("files", "sales.csv", "its files are not a list of at most 1000 names"),
    ("files", {"sales.csv": SHA}, "its files are not a list of at most 1000 names"),
    ("files", [f"f{n}" for n in range(1001)], "its files are not a list of at most 1000 names"),
    ("files", [None], "the name of a file is not text"),
    ("files", [["a"]], "the name of a file is not text"),
    ("files", [""], "the file name '' is not a plain name"),
    ("files", ["."], "the file name '.' is not a plain name"),
    ("files", [".."], "the file name '..' is not a plain name"),
    ("files", ["/etc/passwd"], "the file name '/etc/passwd' is not a plain name"),
    ("files", ["../../.bashrc"], "the file name '../../.bashrc' is not a plain name"),
    ("files", ["a/b"], "the file name 'a/b' is not a plain name"),
    ("files", ["..\\a"], "the file name '..\\\\a' is not a plain name"),
    ("files", ["a\x00b"], "the file name 'a\\x00b' has control characters in it"),
    ("files", ["a\nb"], "the file name 'a\\nb' has control characters in it"),
    ("files", ["a\x7fb"], "the file name 'a\\x7fb' has control characters in it"),
    ("files", ["a\u202eb"], "the file name 'a\\u202eb' has control characters in it"),
    ("files", ["a\ud800"], "the file name 'a\\ud800' has control characters in it"),
    ("files", ["n" * 300], f"the file name '{'n' * 40}'… is longer than 255 bytes"),
    ("files", ["ü" * 128], f"the file name '{'ü' * 40}'… is longer than 255 bytes"),
    ("files", ["a", "b", "a"], "two of its files have the name 'a'"),
    ("file_checksums", [SHA], "its file_checksums do not match its files"),
    ("file_checksums", SHA, "its file_checksums do not match its files"),
    ("file_checksums", {"a": SHA}, "its file_checksums do not match its files"),
]


@pytest.mark.parametrize(("field", "value", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_broken_field_is_named_in_a_sentence(field: str, value: object, reason: str) -> None:
    assert sentence(**{field: value}) == f"cannot run the task: {reason}"


@pytest.mark.parametrize("field", ["prompt", "orchestrator_url", "timeout_seconds", "files"])
def test_broken_assignment_with_a_usable_id_can_be_answered(field: str) -> None:
    with pytest.raises(BadAssignment) as caught:
        parse(**{field: {}})

    assert caught.value.task_id == TASK_ID


@pytest.mark.parametrize(
    "checksums", [[SHA], [SHA, SHA, SHA], [SHA, SHA, SHA, SHA], "xy", {"a": 1, "b": 2}, 7]
)
def test_checksums_match_the_files_one_to_one_or_the_task_is_rejected(checksums: object) -> None:
    assert sentence(files=["a", "b"], file_checksums=checksums) == (
        "cannot run the task: its file_checksums do not match its files"
    )


@pytest.mark.parametrize(
    "checksum", [None, "", "x", SHA[:-1], SHA + "0", "g" * 64, 7, SHA + "\n", "sha256:" + SHA]
)
def test_checksum_that_is_none_is_rejected(checksum: object) -> None:
    assert sentence(files=["a"], file_checksums=[checksum]) == (
        "cannot run the task: the checksum of 'a' is not a SHA-256"
    )


def test_long_hostile_name_is_not_repeated_at_length() -> None:
    assert len(sentence(files=["/" * 100_000])) < 200


# Whatever comes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
names = st.text(max_size=12) | st.sampled_from(["..", "a", "A", "/x", "con", "\ud800"])
near_misses = st.fixed_dictionaries(
    {},
    optional={
        "task_id": st.just(TASK_ID) | st.text(max_size=8) | json_values,
        "prompt": st.text() | json_values,
        "orchestrator_url": st.just(URL) | st.text(max_size=20) | json_values,
        "timeout_seconds": st.floats() | st.integers() | json_values,
        "files": st.lists(names, max_size=4) | json_values,
        "file_checksums": st.lists(st.just(SHA) | st.text(max_size=3), max_size=4) | json_values,
    },
)


@given(json_values | near_misses)
@example(json.loads('{"task_id": "t", "prompt": "\\ud800", "files": ["\\udfff"]}'))
def test_whatever_comes_is_an_assignment_or_a_bad_one(anything: object) -> None:
    try:
        parsed = parse_assignment(anything, orchestrator_url=URL)
    except BadAssignment as error:
        assert str(error).isprintable()  # noqa: PT017 - either end is right
        return
    assert isinstance(parsed, Assignment)
    assert all("/" not in file.name for file in parsed.files)


good = st.builds(
    lambda names, **fields: raw(**fields, files=names),
    names=st.lists(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9).map("f-{}".format),
        unique=True,
        max_size=4,
    ),
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")).map(
        "p{}".format
    ),
    timeout_seconds=st.floats(0, MAX_TIMEOUT_S, exclude_min=True) | st.none(),
)


@given(good, st.booleans())
def test_what_was_written_down_is_read_back_the_same(
    assigned: dict[str, object],
    with_checksums: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    files = assigned["files"]
    assert isinstance(files, list)
    if with_checksums:
        assigned["file_checksums"] = [SHA] * len(files)
    parsed = parse_assignment(assigned, orchestrator_url=URL)

    assert Assignment.from_json(parsed.to_json()) == parsed
    assert parse_assignment(json.loads(parsed.to_json()), orchestrator_url="") == parsed
