"""Find the release before the one in this checkout, from which the scenarios upgrade."""

import os
import shutil
from pathlib import Path

from tools.dev.shell import ROOT, SetupError, run

VARIABLE = "VICTORIA_ROLLOUT_BEFORE"
"""Names that release's commit or tag; also what the scenarios get, as the folder it is in."""
NO_RELEASE = (
    "cannot tell which release came before this one: the history of this checkout does not reach "
    f"that far; run 'git fetch --unshallow --tags', or name a commit in {VARIABLE}"
)


def unpack_release_before(folder: Path, root: Path = ROOT) -> dict[str, str]:
    """Unpack that release into the folder; return the environment that names it to scenarios."""
    commit = release_before(root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    git = ["git", "-C", str(root)]
    run(
        [*git, "archive", f"--output={archive}", commit],
        error=f"cannot pack the release before this one, {commit}: see git's message above",
    )
    run(
        ["tar", "--extract", f"--file={archive}", f"--directory={folder}"],
        error=f"cannot unpack {archive}: see tar's message above",
    )
    archive.unlink()
    return {f"{VARIABLE}_FOLDER": str(folder), f"{VARIABLE}_COMMIT": commit}


def release_before(root: Path = ROOT) -> str:
    """Return the commit of the release before this one.

    It is what VICTORIA_ROLLOUT_BEFORE names; else the newest tag before this commit; else, while
    there is no tag, where this branch left main; on main itself, the commit before.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{chosen}^{{commit}}")
        if commit is None:
            raise SetupError(f"cannot find {chosen} in this checkout: set {VARIABLE} to a commit")
        return commit
    tag = _git(root, "describe", "--tags", "--abbrev=0", "HEAD^")
    if tag is not None:
        return tag
    here = _git(root, "rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        left = _git(root, "merge-base", "HEAD", main)
        if left is not None and left != here:
            return left
    before = _git(root, "rev-parse", "--verify", "--quiet", "HEAD^")
    if before is None:
        raise SetupError(NO_RELEASE)
    return before


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it fails."""
    result = run(["git", "-C", str(root), *arguments])
    return result.output.strip() if result.ok else None
