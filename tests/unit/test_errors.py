"""The errors are the tree that is drawn at the head of their file."""

from __future__ import annotations

import inspect

import pytest

from runner import errors


def drawn_tree() -> dict[str, str]:
    """Read each class and its parent from the drawing."""
    parents, above = {}, {0: "RunnerError"}
    for line in (errors.__doc__ or "").splitlines():
        branch = max(line.find("├── "), line.find("└── "))
        if branch >= 0:
            depth, name = branch // 4, line[branch + 4 :].split()[0]
            parents[name] = above[depth - 1]
            above[depth] = name
    return parents


def test_drawing_is_the_tree_of_classes() -> None:
    assert drawn_tree() == {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception) and cls is not errors.RunnerError
    }


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (1, [errors.RunnerError]),
        (69, [errors.NoContainerRuntime]),
        (75, [errors.TryAgain, errors.StateFolderInUse, errors.JournalError]),
        (75, [errors.WireError, errors.EngineError]),
        (77, [errors.RegistrationRefused]),
        (78, [errors.ConfigurationError]),
    ],
)
def test_exit_codes_are_those_of_sysexits(code: int, kinds: list[type[errors.RunnerError]]) -> None:
    assert {kind.exit_code for kind in kinds} == {code}
