"""Rules about the files that tasks make (extension `artifacts`)."""

import hashlib
import io
import zipfile
from urllib.parse import quote

import httpx

from orchestrator.conformance.expect import (
    Broken,
    expect_accepted,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    json_of,
)
from orchestrator.conformance.node_rules import require_extension
from orchestrator.conformance.target import FILE_CONTENT, Held, Rule, Target

_PATH = "reports/conformance check Übersicht.csv"


def artifacts(target: Target) -> None:
    """A task's artifact is listed and comes back as it was sent; the same again changes nothing."""
    held = _run(target)
    for _ in range(2):
        stored = fields_of(_put(held), "path", "size", "checksum")
        _expect_stored("the response", stored)
    expect_accepted("the end", held.report("success"))
    expect_accepted("the same artifact after the end", _put(held))
    listed = json_of(target.admin.get(_url(held)))
    expect_equal("the number of artifacts", len(listed), 1)
    expect_fields("the artifact on the list", listed[0], "path", "size", "checksum", "created_at")
    _expect_stored("the artifact on the list", listed[0])
    response = target.admin.get(_url(held, _PATH))
    expect_accepted("its download", response)
    expect_equal("the checksum of its bytes", _checksum(response.content), _checksum(FILE_CONTENT))
    checksum = response.headers.get("X-Checksum-SHA256")
    expect_equal("X-Checksum-SHA256 of the download", checksum, _checksum(FILE_CONTENT))
    if not response.headers.get("Content-Disposition", "").startswith("attachment"):
        raise Broken("a browser would show what a task has made, not store it")


def artifacts_refused(target: Target) -> None:
    """An artifact with another checksum or a path that leaves its folder is refused."""
    held = _run(target)
    expect_refusal("another checksum", _put(held, checksum="0" * 64), 400, 422)
    for path in ("%2e%2e/a", "a//b"):
        # Encoded already, since clients take dots out of a path.
        expect_refusal(f"the path {path}", _put(held, encoded=path), 400, 404, 422)
    other = Held(target.register(), held.assignment)
    expect_refusal("an artifact from another node", _put(other), 403, 404)
    expect_equal("what is stored of all that", json_of(target.admin.get(_url(held))), [])
    expect_refusal("an artifact that there is not", target.admin.get(_url(held, "none")), 404)


def artifacts_archive(target: Target) -> None:
    """All artifacts of a task come in one ZIP archive."""
    held = _run(target)
    fields_of(_put(held))
    fields_of(_put(held, encoded="a.txt"))
    response = target.admin.get(f"{_url(held)}.zip")
    expect_accepted("the archive", response)
    kind = response.headers.get("Content-Type")
    expect_equal("its Content-Type", kind, "application/zip")
    try:
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            unpacked = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise Broken(f"the archive cannot be read: {error}") from error
    expect_equal("the names in it", sorted(unpacked), sorted(["a.txt", _PATH]))
    for name, content in unpacked.items():
        expect_equal(f"the checksum of {name} in it", _checksum(content), _checksum(FILE_CONTENT))


def _run(target: Target) -> Held:
    held = target.hold()
    require_extension("artifacts", held.node, "what tasks make stays on their hosts")
    expect_accepted("the status running", held.report("running"))
    return held


def _url(held: Held, path: str = "") -> str:
    return f"/tasks/{held.task_id}/artifacts" + (f"/{quote(path)}" if path else "")


def _put(held: Held, *, encoded: str = quote(_PATH), checksum: str = "") -> httpx.Response:
    headers = {"X-Checksum-SHA256": checksum or _checksum(FILE_CONTENT)}
    return held.node.http.put(f"{_url(held)}/{encoded}", content=FILE_CONTENT, headers=headers)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _expect_stored(what: str, artifact: dict[str, object]) -> None:
    expected = {"path": _PATH, "size": len(FILE_CONTENT), "checksum": _checksum(FILE_CONTENT)}
    actual = {name: artifact.get(name) for name in expected}
    expect_equal(f"path, size and checksum in {what}", actual, expected)


ARTIFACT_RULES: dict[str, tuple[Rule, ...]] = {
    "artifacts": (artifacts, artifacts_refused, artifacts_archive),
}
