"""What cannot be used on the command line ends in one sentence and the exit code of its kind."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from runner.journal.journal import Journal
from runner.state_dir import prepare_state_dir

ROOT = Path(__file__).parents[2]
URL = "--orchestrator-url=http://127.0.0.1:9"
TOKEN = "--registration-token-file=FOLDER/token"  # noqa: S105 - the name of a file
BOTH = f"PROGRAM {URL} {TOKEN}"

AWAY = f"PROGRAM --orchestrator-url=https://orchestrator.example.com {TOKEN}"
SECRET = "hunter2-hunter2"  # noqa: S105 - opens nothing
LOGIN = f" --orchestrator-url=https://me:{SECRET}@a.example"
GONE = "mkdir gone && cd gone && rmdir ../gone"
DAMAGED = "it is damaged; start the runner once"

# One row for each place where a command line is refused; all sentences of the options' texts and
# files are in tests/unit/test_settings.py.
REFUSED = {
    "no URL": (2, f"PROGRAM {TOKEN}", "Missing option '--orchestrator-url'"),
    "no token": (2, f"PROGRAM {URL}", "Missing option '--registration-token-file' (or '--reg"),
    "interval of nothing": (2, f"{BOTH} --poll-interval=0", "it must be more than 0"),
    "unknown runtime": (2, f"{BOTH} --container-runtime=rkt", "is not one of"),
    "bad variable": (2, f"VICTORIA_RUNNER_MAX_TASKS=several {BOTH}", "is not a valid int"),
    "two tokens": (2, f"VICTORIA_RUNNER_REGISTRATION_TOKEN=x {BOTH}", "exclude each other"),
    "empty path": (2, f"{BOTH} --state-dir=", "it is empty: give a path"),
    "password in URL": (78, f"{BOTH}{LOGIN}", "with a user name or password in it"),
    "no token file": (78, f"{BOTH}/none", "cannot read --registration-token-file"),
    "broken env file": (78, f"{BOTH} --env-file=FOLDER/env", "line 2 is not NAME=VALUE"),
    "no certificate": (78, f"{AWAY} --ca-file=FOLDER/env", "it does not hold a PEM certificate"),
    "tag without a value": (78, f"{BOTH} --tag=berlin", "give it as KEY=VALUE"),
    "forbidden image": (78, f"{BOTH} --allow-image=a/*", "no --allow-image pattern matches"),
    "home of nobody": (78, f"{BOTH} --victoria-home=~nobody-here", "there is no such user"),
    "home is a file": (78, f"{BOTH} --victoria-home=FOLDER/env", "cannot make --victoria-home"),
    "home in a loop": (78, f"{BOTH} --victoria-home=FOLDER/loop", "cannot use --victoria-home"),
    "state below a file": (78, f"{BOTH} --state-dir=FOLDER/env/state", "cannot make --state-dir"),
    "cleanup of nothing": (78, "PROGRAM --state-dir=FOLDER/none cleanup", "give the --state-dir"),
    "cleanup with half an id": (78, "PROGRAM --state-dir=FOLDER/half cleanup", DAMAGED),
    "home below what is gone": (78, f"{GONE} && {BOTH} --victoria-home=here", "--victoria-home"),
    "socks proxy": (78, f"ALL_PROXY=socks5://{SECRET}@a:1 {AWAY}", "use the proxy in ALL_PROXY: "),
    "port of a proxy": (78, f"HTTPS_PROXY=http://{SECRET}:x {AWAY}", "the proxy in HTTPS_PROXY: "),
    "empty proxy": (78, f"https_proxy=http:// {AWAY}", "cannot use the proxy in https_proxy: "),
    "odd proxy": (78, f"all_proxy=odd://{SECRET} {AWAY}", "cannot use the proxy in all_proxy: "),
}


def run_in(folder: Path, command_line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell to its end, in which PROGRAM is the runner."""
    program = f"{sys.executable} -m runner"
    return subprocess.run(
        ["/bin/sh", "-c", command_line.replace("FOLDER", str(folder)).replace("PROGRAM", program)],
        cwd=folder,
        env={
            "HOME": str(folder),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "VICTORIA_RUNNER_VICTORIA_HOME": f"{folder}/home",
            "VICTORIA_RUNNER_STATE_DIR": f"{folder}/state",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with a token and with engines that write down that they were called."""
    (tmp_path / "token").write_text("the-token\n")
    (tmp_path / "bin").mkdir()
    for name in ("podman", "docker"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("exit_code", "command_line", "sentence"), REFUSED.values(), ids=REFUSED.keys()
)
def test_bad_command_line_ends_in_a_sentence(
    folder: Path, exit_code: int, command_line: str, sentence: str
) -> None:
    (folder / "env").write_text(f"GOOD=1\n{SECRET}\n")
    (folder / "loop").symlink_to("loop")
    (folder / "half").mkdir()
    (folder / "half" / "runner-id").write_bytes(b"\xff\xfe")  # as a power cut leaves it
    Journal(folder / "half" / "journal.sqlite3").close_file()
    before = set(folder.rglob("*"))
    done = run_in(folder, command_line)
    assert done.returncode == exit_code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: " if exit_code == 2 else "victoria-runner: cannot ")
    made = {path.relative_to(folder).parts[0] for path in set(folder.rglob("*")) - before}
    assert made <= {"home", "state", "called"}


def test_cleanup_with_nothing_to_remove_says_so(folder: Path) -> None:
    (folder / "bin" / "podman").write_text("#!/bin/sh\n")
    (folder / "state").mkdir()
    prepare_state_dir(folder / "state")
    Journal(folder / "state" / "journal.sqlite3").close_file()
    done = run_in(folder, "PROGRAM cleanup --older-than=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "nothing to remove: no container of a finished task, no old image, and no folder of a "
        "task that finished more than 3 days ago\n"
    )


def test_in_the_journal_what_ends_the_program_is_one_entry_and_an_error(folder: Path) -> None:
    journal = "export JOURNAL_STREAM=$(stat --dereference --format %d:%i /proc/self/fd/2)"
    done = run_in(folder, f"{journal}; PROGRAM --no-such-option; {BOTH}/none")
    usage, configuration = done.stderr.splitlines()
    assert usage.startswith("<3>Error: No such option")
    assert configuration.startswith("<3>victoria-runner: cannot read --registration-token-file")


@pytest.mark.parametrize(
    ("option", "old", "new", "count"),
    [
        ("--orchestrator-url", "http://orchestrator.example", "http://127.0.0.1:9", 4),
        ("--container-runtime", "podman", "docker", 3),
    ],
    ids=["other orchestrator", "other engine"],
)
def test_folder_with_unfinished_tasks_refuses_another_orchestrator_and_engine(
    folder: Path, option: str, old: str, new: str, count: int
) -> None:
    state_dir = folder / "state"
    state_dir.mkdir()
    with closing(sqlite3.connect(state_dir / "journal.sqlite3")) as journal:
        journal.executescript((ROOT / "tests/unit/journals/ordinary.sql").read_text())
    usual = f"VICTORIA_RUNNER_ORCHESTRATOR_URL=http://orchestrator.example PROGRAM {TOKEN}"
    done = run_in(folder, f"{usual} --allow-http {option}={new}")
    assert done.returncode == 78, done.stderr
    assert done.stderr == (
        f"victoria-runner: cannot use {option} {new}: {state_dir} has unfinished tasks ({count}) "
        f"of {option} {old}; start the runner once with `{option} {old} --once`, which finishes "
        "and reports them, or choose another --state-dir\n"
    )
    assert not (folder / "called").exists()
