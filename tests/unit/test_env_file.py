"""An env file means what people write: quotes, comments, export, and ${NAME} of the same file."""

from pathlib import Path

import jinja2
import pytest

from runner.env_file import check_env_file, engine_format, read_env_file, readable_values
from runner.errors import ConfigurationError
from runner.redaction import Secret, known_secrets, redact_output

EXAMPLE = """\
# Keys for the agent. Copy to .env and fill in.
MODEL_KEY="sk-test-0123456789"
WAREHOUSE_ACCOUNT="ab12345.eu-west-1"        # as in the address bar
WAREHOUSE_PASSWORD='pat-$0123"456'    # it's a token
export MAIL_FROM='Reports <reports@example.com>'

HOME_DIR=/data  # a comment
REPORTS_DIR="${HOME_DIR}/reports"
CACHE_DIR=${CACHE:-/var/cache}
EMPTY=
BLANK = ""
PLAIN=value with blanks
HASH=abc#def
DOLLARS=a$b$$c$
"""
VALUES = {
    "MODEL_KEY": "sk-test-0123456789",
    "WAREHOUSE_ACCOUNT": "ab12345.eu-west-1",
    "WAREHOUSE_PASSWORD": 'pat-$0123"456',
    "MAIL_FROM": "Reports <reports@example.com>",
    "HOME_DIR": "/data",
    "REPORTS_DIR": "/data/reports",
    "CACHE_DIR": "/var/cache",
    "EMPTY": "",
    "BLANK": "",
    "PLAIN": "value with blanks",
    "HASH": "abc#def",
    "DOLLARS": "a$b$$c$",
}
TEMPLATE = Path("ansible/roles/victoria_runner/templates/container.env.j2")


def read(folder: Path, content: str | bytes) -> dict[str, str]:
    path = folder / "env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_env_file(path).variables


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_file_as_people_write_it_has_plain_values(tmp_path: Path, newline: str) -> None:
    assert read(tmp_path, "\ufeff" + EXAMPLE.replace("\n", newline)) == VALUES
    assert engine_format(VALUES).splitlines()[6:8] == ["CACHE_DIR=/var/cache", "EMPTY="]


def test_variable_of_this_host_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "of-the-host")
    path = tmp_path / "env"
    path.write_text("\nA=${ELSEWHERE}/a$ELSEWHERE\nB=${A}\n")
    env_file = read_env_file(path)
    assert env_file.variables == dict.fromkeys("AB", "${ELSEWHERE}/a$ELSEWHERE")
    (warning,) = env_file.warnings
    assert warning.startswith(
        "line 2: ${ELSEWHERE} is not set above this line and is passed on unchanged"
    )
    for line in ("ELSEWHERE", "export ELSEWHERE"):
        with pytest.raises(ConfigurationError, match="line 1 is not NAME=VALUE"):
            read(tmp_path, line)


NOT_A_PAIR = "is not NAME=VALUE; put quotes around a whole value, and # before a comment"
SEVERAL = "has a value over several lines, which no engine passes on; write it in one line"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hunter2", NOT_A_PAIR),
        ("=hunter2", NOT_A_PAIR),
        ("KEY: hunter2", NOT_A_PAIR),
        ("'TWO WORDS'=hunter2", NOT_A_PAIR),
        ('"KEY"=hunter2', NOT_A_PAIR),
        ('KEY="hunter2', NOT_A_PAIR),
        ('KEY="hunter2" and more', NOT_A_PAIR),
        ("KEY='it's hunter2'", NOT_A_PAIR),
        ('KEY="hunter2\nmore"', SEVERAL),
        ('KEY="hunter2\\nmore"', SEVERAL),
        ("KEY='hunter2\r\n'", SEVERAL),
        (f"KEY={'hunter2' * 10_000}", "has a value of more than 64 kB, which no engine passes on"),
    ],
)
def test_line_that_cannot_be_used_is_named_by_its_number_and_not_repeated(
    tmp_path: Path, line: str, reason: str
) -> None:
    for number, content in ((1, f"{line}\n"), (4, f"# so\nA='1'\n\n{line}\nB=2\n")):
        with pytest.raises(ConfigurationError) as refusal:
            read(tmp_path, content)
        sentence = f"cannot use --env-file {tmp_path / 'env'}: line {number} {reason}"
        assert str(refusal.value).startswith(sentence)
        assert "hunter2" not in str(refusal.value)


def test_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file or directory; put the file there"):
        check_env_file(tmp_path / "none")
    assert readable_values(tmp_path / "none") == []


def test_secrets_are_redacted_as_their_plain_value(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(
        "PASSWORD='first-half\u2028second-half'  # note\n# NOTE=not-a-secret\nbroken\n"
        'BLANKS=" with-blanks "\nBOTH="${BLANKS}twice"\n'
    )
    known = known_secrets(*map(Secret, ["registration-token", *readable_values(path)]))
    output = "registration-token first-half\u2028second-half second-half not-a-secret with-blanks"
    assert redact_output(output, known) == "*** *** second-half not-a-secret ***"
    assert redact_output("with-blanks twice", known) == "***"


def test_role_writes_values_so_that_they_are_read_as_they_were_given(tmp_path: Path) -> None:
    values = {"A": "a'b\\' # c", "B": ' "x" ', "C": "C:\\new\\", "D": "a$b", "E": 8, "F": ""}
    template = jinja2.Environment(trim_blocks=True, autoescape=True).from_string(
        "{% autoescape false %}" + TEMPLATE.read_text(encoding="utf-8") + "{% endautoescape %}"
    )
    written = template.render(victoria_runner_container_environment=values)
    assert read(tmp_path, written) == {name: str(value) for name, value in values.items()}
