"""Whether an upgrade of the distribution has replaced the Python of a release."""

from pathlib import Path

import pytest

from runner.release import other_python

OTHER = "this release was installed for Python 3.13, and the host has 3.14 now; run site.yml"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("/opt/victoria-runner/current/venv/lib/python3.13/site-packages/runner/release.py", OTHER),
        ("/opt/victoria-runner/current/venv/lib/python3.14/site-packages/runner/release.py", ""),
        ("/src/victoria/runner/release.py", ""),
    ],
    ids=["another", "the-same", "a-checkout"],
)
def test_release_for_another_python_says_what_to_do(module: str, expected: str) -> None:
    assert other_python(Path(module), (3, 14)).startswith(expected)
    assert bool(other_python(Path(module), (3, 14))) == bool(expected)


def test_link_for_another_python_shows_for_which_the_release_was_installed(tmp_path: Path) -> None:
    """An upgrade leaves the folder of the old version; the role has linked it for the new one."""
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "release.py").touch()
    (tmp_path / "lib" / "python3.14").symlink_to("python3.12")
    module = tmp_path / "lib" / "python3.14" / "site-packages" / "release.py"
    assert "installed for Python 3.12" in other_python(module, (3, 14))
