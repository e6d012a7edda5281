"""The errors are the tree that is drawn at the head of their file."""

from __future__ import annotations

import inspect

import pytest

from runner import errors
from runner.errors import (
    BadAssignment,
    ConfigurationError,
    EngineError,
    JournalError,
    NoContainerRuntime,
    Refused,
    RegistrationRefused,
    RunnerError,
    StateFolderInUse,
    TaskError,
    TryAgain,
    Unauthorised,
    Unavailable,
    Unstartable,
    WireError,
)
from runner.model import EndReason


def drawn_tree() -> dict[str, str | None]:
    """Read each class and its parent from the drawing."""
    parents: dict[str, str | None] = {"RunnerError": None}
    above = {0: "RunnerError"}
    for line in (errors.__doc__ or "").splitlines():
        branch = max(line.find("├── "), line.find("└── "))
        if branch < 0:
            continue
        depth = branch // 4
        name = line[branch + 4 :].split()[0]
        parents[name] = above[depth - 1]
        above[depth] = name
    return parents


def test_drawing_is_the_tree_of_classes() -> None:
    classes = {
        name: cls
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception)
    }

    assert drawn_tree() == {
        name: None if cls is RunnerError else cls.__bases__[0].__name__
        for name, cls in classes.items()
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunnerError, 1),
        (NoContainerRuntime, 69),
        (TryAgain, 75),
        (StateFolderInUse, 75),
        (JournalError, 75),
        (WireError, 75),
        (EngineError, 75),
        (RegistrationRefused, 77),
        (ConfigurationError, 78),
    ],
)
def test_exit_codes_are_those_of_sysexits(error: type[RunnerError], code: int) -> None:
    assert error.exit_code == code


def test_errors_of_a_task_have_the_reason_of_its_end() -> None:
    assert TaskError("x").reason is Unstartable("x").reason is EndReason.UNSTARTABLE
    assert BadAssignment("x").reason is EndReason.REJECTED
    assert BadAssignment("x").task_id is None
    assert BadAssignment("x", "t-1").task_id == "t-1"


def test_unknown_key_is_a_refusal_and_an_outage_is_not() -> None:
    assert isinstance(Unauthorised("x"), Refused)
    assert Unauthorised("x").status == 401
    assert not issubclass(Unavailable, Refused)
    assert not issubclass(Refused, Unavailable)
    error = Unavailable("x")
    assert (error.retry_after_s, error.status, error.detail) == (None, None, None)
