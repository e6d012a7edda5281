"""An assignment is checked before anything of it becomes a path or an argument."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.api.assignment import MAX_FILES, MAX_PROMPT_BYTES, parse_assignment
from runner.errors import BadAssignment
from runner.model import MAX_TIMEOUT_S, Assignment, EndReason, TaskFile
from runner.redaction import Secret

TASK_ID = "11111111-2222-4333-8444-555555555555"
URL = "https://orchestrator.example.com"
FALLBACK_URL = "https://fallback.example.com"
SHA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
OTHER_SHA = "0" * 64


def raw(**changed: object) -> dict[str, object]:
    return {"task_id": TASK_ID, "prompt": "count the rows", "orchestrator_url": URL, **changed}


def parse(**changed: object) -> Assignment:
    return parse_assignment(raw(**changed), orchestrator_url=FALLBACK_URL)


def refusal(value: object) -> BadAssignment:
    with pytest.raises(BadAssignment) as caught:
        parse_assignment(value, orchestrator_url=FALLBACK_URL)
    assert caught.value.reason is EndReason.REJECTED
    return caught.value


def no_sum(name: str) -> TaskFile:
    return TaskFile(name, None)


def test_prompt_with_an_id_is_enough_and_unknown_fields_and_nulls_are_ignored() -> None:
    smallest = parse_assignment({"task_id": TASK_ID, "prompt": "count"}, orchestrator_url=URL)
    assert smallest == Assignment(TASK_ID, "count", URL, 3600)
    assert parse(priority=10, job_id=None, timeout_seconds=None) == parse()
    assert parse(orchestrator_url=None).orchestrator_url == FALLBACK_URL


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("task_id", ["1", "a" * 128, "Task_1.b-2", TASK_ID.upper()]),
        ("prompt", ["--help", "$(reboot); `id`", "two\nlines\t", "naïve 数据 🚀"]),
        ("prompt", ["x" * MAX_PROMPT_BYTES, f"-{'x' * (MAX_PROMPT_BYTES - 8)}"]),
        ("orchestrator_url", ["http://10.0.0.1:8000/x"]),
    ],
)
def test_good_field_is_used_as_it_is(field: str, values: list[object]) -> None:
    assert [getattr(parse(**{field: value}), field) for value in values] == values


@pytest.mark.parametrize("seconds", [1, 0.5, MAX_TIMEOUT_S])
def test_timeout_is_in_seconds(seconds: float) -> None:
    assert parse(timeout_seconds=seconds).timeout_s == seconds


def test_timeout_of_zero_is_no_limit() -> None:
    assert {parse(timeout_seconds=zero).timeout_s for zero in (0, 0.0, -0.0)} == {math.inf}


def test_plain_file_names_are_accepted_even_if_they_differ_by_a_byte() -> None:
    plain = ["two words", "100%#?&", "-rf", "...", "~", "n" * 255, "NUL", "A", "a", "ü", "u\u0308"]
    plain += ["\u06af\u0632\u200c\u0647.xlsx", "👨\u200d👩.png", "\u200ea.pdf", "so\u00adft"]
    plain += ["a\u202eb", "\U0001fae0", "a\\b"]
    names = [*plain, *(f"f{number}" for number in range(MAX_FILES - len(plain)))]
    assert [file.name for file in parse(files=names).files] == names


@pytest.mark.parametrize(
    ("files", "checksums", "parsed"),
    [
        (["a", "b"], [SHA, OTHER_SHA], (TaskFile("a", SHA), TaskFile("b", OTHER_SHA))),
        (["a"], [SHA.upper()], (TaskFile("a", SHA),)),
        (["a"], None, (TaskFile("a", None),)),
        (["a"], [], (TaskFile("a", None),)),
        (["a", "b", "c"], [SHA, None, ""], (TaskFile("a", SHA), *map(no_sum, "bc"))),
        (["a"], "", (TaskFile("a", None),)),
        (None, None, ()),
    ],
)
def test_checksums_are_in_the_order_of_files(
    files: object, checksums: object, parsed: tuple[TaskFile, ...]
) -> None:
    assert parse(files=files, file_checksums=checksums).files == parsed


@pytest.mark.parametrize(
    ("originals", "expected"),
    [
        (["in.csv", "out.csv"], ["in.csv", "out.csv"]),
        (
            ["in.csv", "in.csv", "in-2.csv", "in.csv"],
            ["in.csv", "in-3.csv", "in-2.csv", "in-4.csv"],
        ),
        ([".env", ".env"], [".env", ".env-2"]),
        (["n" * 255] * 2, ["n" * 255, "n" * 253 + "-2"]),
        ([f"x.{'n' * 253}"] * 2, [f"x.{'n' * 253}", f"x.{'n' * 251}-2"]),
        ([None, "0"], ["0", "0-2"]),
        (None, ["0", "1"]),
    ],
)
def test_file_has_its_original_name_and_a_number_if_another_has_it(
    originals: list[object] | None, expected: list[str]
) -> None:
    names = [str(number) for number in range(len(expected))]
    parsed = parse(files=names, original_names=originals)
    assert [file.local_name for file in parsed.files] == expected
    assert [file.name for file in parsed.files] == names
    assert Assignment.from_json(parsed.to_json()) == parsed


def test_anything_but_an_object_is_not_an_assignment() -> None:
    for error in map(refusal, (None, "task", True, [raw()])):
        assert str(error) == "cannot read the assignment: it is not a JSON object"
        assert error.task_id is None


@pytest.mark.parametrize("key", ["vt_0123", "!~", "k" * 1000])
def test_key_of_the_task_is_a_secret(key: str) -> None:
    parsed = parse(task_api_key=key)
    assert parsed.task_key == Secret(key)
    assert repr(key) not in repr(parsed)


@pytest.mark.parametrize("key", ["", "two words", "a\nTASK_ID=x", "ké", "k" * 1001, 7, ["k"], True])
def test_task_whose_key_is_no_header_is_rejected_without_showing_it(key: object) -> None:
    error = refusal(raw(task_api_key=key))
    assert error.task_id == TASK_ID
    assert str(error) == (
        "cannot run the task: its task_api_key must be 1 to 1000 printable ASCII characters "
        "without blanks"
    )


UNUSABLE_IDS = [
    *(None, "", 7, ["t-1"], ".", "..", "../../etc", "a/b", "-rf", ".hidden", "a b", "$(id)"),
    *("a\n", "a\x00", "tâche", "١٢٣", "a" * 129),
]


@pytest.mark.parametrize("task_id", UNUSABLE_IDS)
def test_assignment_without_a_usable_task_id_cannot_be_answered(task_id: object) -> None:
    expected = "its task_id must be 1 to 128 letters, digits, dots, dashes or underscores"
    for error in (refusal(raw(task_id=task_id)), refusal({"prompt": "count"})):
        assert str(error) == f"cannot read the assignment: {expected}"
        assert error.task_id is None


TOO_MUCH = "is the most that a command line takes; send the text as a file"
NOT_A_URL = "its orchestrator_url is not a URL"
NOT_HTTP = "its orchestrator_url is not an http or https URL"
NOT_A_NUMBER = "its timeout_seconds is not a number"
OUT_OF_RANGE = "its timeout_seconds must lie between 0 and 31622400"
NOT_NAMES = "its files are not a list of at most 1000 names"
NOT_A_PLAIN_NAME = "the file name {0!r} is not a plain name"
CONTROL_CHARACTERS = "the file name {0!r} has control characters in it"
NOT_A_SHA = "the checksum of 'a' is not a SHA-256"
DO_NOT_MATCH = "its file_checksums do not match its files"

BROKEN: list[tuple[str, str, list[object]]] = [
    ("prompt", "its prompt is missing or empty", [None, "", " \n\t", ["count"], 7, {}]),
    ("prompt", "its prompt has a NUL character in it", ["a\x00b"]),
    ("prompt", "its prompt is not valid Unicode", ["half \ud83d"]),
    ("prompt", f"its prompt has 131072 bytes and 131071 {TOO_MUCH}", ["ü" * 65_536]),
    ("prompt", f"its prompt has 131065 bytes and 131064 {TOO_MUCH}", ["-" * 131_065]),
    ("orchestrator_url", NOT_A_URL, ["", 7, {}, "https://a b", "https://a\nX=1"]),
    ("orchestrator_url", NOT_A_URL, ["https://" + "a" * 2000]),
    ("orchestrator_url", NOT_HTTP, ["ftp://a", "file:///etc/passwd", "https://", "https://[::1"]),
    ("timeout_seconds", NOT_A_NUMBER, ["60", True, [], {}]),
    ("timeout_seconds", OUT_OF_RANGE, [-1e-9, -5, 10**400, float("nan"), float("inf")]),
    ("files", NOT_NAMES, ["sales.csv", {"sales.csv": SHA}, {}, [f"f{n}" for n in range(1001)]]),
    ("files", "the name of a file is not text", [[None], [["a"]]]),
    ("files", NOT_A_PLAIN_NAME, [[""], ["."], [".."], ["/etc/passwd"], ["a/b"]]),
    ("files", CONTROL_CHARACTERS, [["a\x00b"], ["a\nb"], ["a\x7fb"], ["a\x1b"], ["a\x85"]]),
    ("files", "the file name {0!r} is not valid Unicode", [["a\ud800"]]),
    ("original_names", NOT_A_PLAIN_NAME, [["../a"], [".."]]),
    ("original_names", CONTROL_CHARACTERS, [["a\nb"]]),
    ("original_names", "its original_names do not match its files", [["a", "b"], "a", {"a": 1}]),
    ("files", f"the file name '{'n' * 40}'… is longer than 255 bytes", [["n" * 300]]),
    ("files", f"the file name '{'ü' * 40}'… is longer than 255 bytes", [["ü" * 128]]),
    ("files", f"the file name '{'/' * 80}' is not a plain name", [["/" * 100_000]]),
    ("files", "two of its files have the name 'a'", [["a", "b", "a"]]),
    ("file_checksums", DO_NOT_MATCH, [[SHA], SHA, {"a": SHA}]),
]


@pytest.mark.parametrize(("field", "reason", "values"), BROKEN)
def test_broken_field_is_named_in_a_sentence(field: str, reason: str, values: list[object]) -> None:
    for value in values:
        named = reason.format(*value) if isinstance(value, list) else reason
        files = {"files": ["0"]} if field == "original_names" else {}
        error = refusal(raw(**{**files, field: value}))
        assert str(error) == f"cannot run the task: {named}"
        assert error.task_id == TASK_ID


@pytest.mark.parametrize(
    ("files", "reason", "values"),
    [
        (["a", "b"], DO_NOT_MATCH, [[SHA], [SHA] * 3, "xy", {"a": 1, "b": 2}, 7]),
        (["a"], NOT_A_SHA, [[SHA[:-1]], [SHA + "0"], ["g" * 64], [SHA + "\n"], [7]]),
    ],
)
def test_each_file_has_its_checksum(files: list[str], reason: str, values: list[object]) -> None:
    for checksums in values:
        error = refusal(raw(files=files, file_checksums=checksums))
        assert str(error) == f"cannot run the task: {reason}"


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
        "original_names": st.lists(names, max_size=4) | json_values,
        "task_api_key": st.text(max_size=9) | json_values,
    },
)


@given(json_values | near_misses)
@example(json.loads('{"task_id": "t", "prompt": "\\ud800", "files": ["\\udfff"]}'))
def test_any_json_is_an_assignment_or_a_bad_one(anything: object) -> None:
    try:
        parsed = parse_assignment(anything, orchestrator_url=URL)
    except BadAssignment as error:
        assert str(error).isprintable()  # noqa: PT017 - either end is right
        return
    assert isinstance(parsed, Assignment)
    assert all("/" not in file.local_name for file in parsed.files)


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    name=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9),
    timeout_seconds=st.floats(0.1, MAX_TIMEOUT_S - 1) | st.none(),
    checksums=st.sampled_from([None, [SHA]]),
    key=st.sampled_from([None, "vt_0123"]),
)
def test_stored_assignment_is_read_back_the_same(
    prompt: str, name: str, timeout_seconds: float | None, checksums: object, key: object
) -> None:
    fields = {"files": [f"f-{name}"], "file_checksums": checksums, "task_api_key": key}
    parsed = parse(prompt=f"p{prompt}", timeout_seconds=timeout_seconds, **fields)
    assert Assignment.from_json(parsed.to_json()) == parsed
    assert parse_assignment(json.loads(parsed.to_json()), orchestrator_url="") == parsed


def test_no_time_limit_is_the_longest_one_to_the_version_before() -> None:
    stored = parse(timeout_seconds=0).to_json()
    assert json.loads(stored)["timeout_seconds"] == MAX_TIMEOUT_S
    assert Assignment.from_json(stored).timeout_s == math.inf
