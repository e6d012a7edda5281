"""What cannot be used on the command line ends in one sentence and the exit code of its kind."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runner.journal.journal import Journal

ROOT = Path(__file__).parents[2]
URL = ("--orchestrator-url", "http://127.0.0.1:9")
AWAY = ("--orchestrator-url", "https://orchestrator.example.com")
TOKEN = ("--registration-token-file", "{folder}/token")
USUAL = (*URL, *TOKEN)
SECRET = "hunter2-hunter2"  # noqa: S105 - opens nothing


@dataclass(frozen=True)
class Bad:
    """A command line, and its exit code and sentence."""

    exit_code: int
    sentence: str
    arguments: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


# One row for each place where a command line is refused; all sentences of the options' texts and
# files are in tests/unit/test_settings.py.
TABLE: dict[str, Bad] = {
    "no URL": Bad(2, "Missing option '--orchestrator-url'", TOKEN),
    "no token": Bad(2, "Missing option '--registration-token-file' (or '--registration-", URL),
    "unknown option": Bad(2, "No such option", (*USUAL, "--no-such-option")),
    "interval of nothing": Bad(2, "it must be more than 0", (*USUAL, "--poll-interval", "0")),
    "unknown runtime": Bad(2, "is not one of", (*USUAL, "--container-runtime", "rkt")),
    "bad variable": Bad(2, "is not a valid int", USUAL, {"VICTORIA_RUNNER_MAX_TASKS": "several"}),
    "two tokens": Bad(2, "exclude each other", USUAL, {"VICTORIA_RUNNER_REGISTRATION_TOKEN": "x"}),
    "empty path": Bad(2, "it is empty: give a path", (*USUAL, "--state-dir", "")),
    "password in the URL": Bad(
        78,
        "with a user name or password in it",
        ("--orchestrator-url", f"https://me:{SECRET}@a.example", *TOKEN),
    ),
    "token file that is not there": Bad(
        78,
        "cannot read --registration-token-file",
        (*URL, "--registration-token-file", "{folder}/none"),
    ),
    "env file with a broken line": Bad(
        78, "line 2 is not NAME=VALUE", (*USUAL, "--env-file", "{folder}/env")
    ),
    "CA file without a certificate": Bad(
        78,
        "it does not hold a PEM certificate",
        ("--orchestrator-url", "https://127.0.0.1:9", *TOKEN, "--ca-file", "{folder}/env"),
    ),
    "tag without a value": Bad(78, "give it as KEY=VALUE", (*USUAL, "--tag", "berlin")),
    "image that policy forbids": Bad(
        78, "no --allow-image pattern matches", (*USUAL, "--allow-image", "trusted.example/*")
    ),
    "home of nobody": Bad(
        78,
        "cannot use --victoria-home ~no-such-user/x: there is no such user",
        (*USUAL, "--victoria-home", "~no-such-user/x"),
    ),
    "home that is a file": Bad(
        78, "cannot make --victoria-home", (*USUAL, "--victoria-home", "{folder}/env")
    ),
    "home that is a link to itself": Bad(
        78, "cannot use --victoria-home", (*USUAL, "--victoria-home", "{folder}/loop")
    ),
    "state folder below a file": Bad(
        78, "cannot make --state-dir", (*USUAL, "--state-dir", "{folder}/env/state")
    ),
    "cleanup without a journal": Bad(
        78, "give the --state-dir of the runner", ("--state-dir", "{folder}/none", "cleanup")
    ),
    **{
        f"cleanup with {what}": Bad(
            78,
            "it is damaged; start the runner once",
            ("--state-dir", f"{{folder}}/{what}", "cleanup"),
        )
        for what in ("half an id", "an id of zeros")
    },
    **{
        f"proxy {proxy}": Bad(
            78, f"cannot use the proxy in {variable}: ", (*AWAY, *TOKEN), {variable: proxy}
        )
        for variable, proxy in {
            "ALL_PROXY": f"socks5://me:{SECRET}@127.0.0.1:1080",
            "HTTPS_PROXY": f"http://{SECRET}:not-a-port",
            "https_proxy": "http://",
            "all_proxy": f"carrier-pigeon://{SECRET}",
        }.items()
    },
}


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a runner's process to its end; it has these variables alone."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize("bad", TABLE.values(), ids=TABLE.keys())
def test_bad_command_line_ends_in_a_sentence(tmp_path: Path, bad: Bad) -> None:
    (tmp_path / "token").write_text("the-token\n")
    (tmp_path / "env").write_text(f"GOOD=1\n{SECRET}\n")
    (tmp_path / "loop").symlink_to("loop")
    # As power cuts leave them.
    for name, left in (("half an id", b"\xff\xfe"), ("an id of zeros", bytes(37))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runner-id").write_bytes(left)
        Journal(tmp_path / name / "journal.sqlite3").close_file()
    podman = tmp_path / "bin" / "podman"
    podman.parent.mkdir()
    podman.write_text("#!/bin/sh\nexit 1\n")
    podman.chmod(0o755)
    before = set(tmp_path.rglob("*"))
    done = run(
        [sys.executable, "-m", "runner"]
        + [argument.replace("{folder}", str(tmp_path)) for argument in bad.arguments],
        {
            "PATH": f"{podman.parent}:{os.environ['PATH']}",
            "VICTORIA_RUNNER_VICTORIA_HOME": f"{tmp_path}/home",
            "VICTORIA_RUNNER_STATE_DIR": f"{tmp_path}/state",
            **bad.variables,
        },
    )

    assert done.returncode == bad.exit_code, done.stderr
    assert bad.sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: " if bad.exit_code == 2 else "victoria-runner: cannot ")
    made = set(tmp_path.rglob("*")) - before
    ours = (tmp_path / "home", tmp_path / "state")
    assert all(any(folder == path or folder in path.parents for folder in ours) for path in made)


def test_home_below_a_folder_that_is_gone_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token\n")
    gone = tmp_path / "gone"
    script = f'cd {gone} && rmdir {gone} && exec "$@"'
    options = [*URL, f"--registration-token-file={tmp_path}/token", f"--state-dir={tmp_path}/state"]
    runner = [sys.executable, "-m", "runner", "--once", *options, "--victoria-home=here"]
    gone.mkdir()
    done = run(
        ["/bin/sh", "-c", script, "sh", *runner],
        {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "old", "new", "count"),
    [
        ("--orchestrator-url", "http://orchestrator.example", "http://127.0.0.1:9", 4),
        ("--container-runtime", "podman", "docker", 3),
    ],
    ids=["other orchestrator", "other engine"],
)
def test_folder_with_unfinished_tasks_refuses_another_orchestrator_and_engine(
    tmp_path: Path, option: str, old: str, new: str, count: int
) -> None:
    (tmp_path / "token").write_text("the-token\n")
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    with closing(sqlite3.connect(state_dir / "journal.sqlite3")) as journal:
        journal.executescript((ROOT / "tests/unit/journals/ordinary.sql").read_text())
    for name in ("podman", "docker"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
        (tmp_path / name).chmod(0o755)
    done = run(
        [sys.executable, "-m", "runner", "--allow-http", option, new],
        {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "VICTORIA_RUNNER_ORCHESTRATOR_URL": "http://orchestrator.example",
            "VICTORIA_RUNNER_REGISTRATION_TOKEN_FILE": f"{tmp_path}/token",
            "VICTORIA_RUNNER_VICTORIA_HOME": f"{tmp_path}/home",
            "VICTORIA_RUNNER_STATE_DIR": f"{state_dir}",
        },
    )

    assert done.returncode == 78, done.stderr
    assert done.stderr == (
        f"victoria-runner: cannot use {option} {new}: {state_dir} has unfinished tasks ({count}) "
        f"of {option} {old}; start the runner once with `{option} {old} --once`, which finishes "
        "and reports them, or choose another --state-dir\n"
    )
    assert not (tmp_path / "called").exists()
