"""`task artifacts` and `task download`: the files that a task made."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.client import show
from orchestrator.client.api import Api, Json, task_path
from orchestrator.client.connect import connect
from orchestrator.client.errors import Refused, Unconfigured
from orchestrator.client.text import one_line

if TYPE_CHECKING:
    import httpx

_BLOCK = 1 << 20


@click.command()
@click.argument("task_id")
@show.json_option
def artifacts(task_id: str, *, as_json: bool) -> None:
    """List the files that a task made."""
    rows = _list(connect(), task_id)
    if as_json:
        show.print_json(rows)
        return
    shown = [
        (str(row.get("size")), show.age(row.get("created_at")), str(row.get("path")))
        for row in rows
    ]
    show.print_table(("BYTES", "UPLOADED", "PATH"), shown, "no artifacts")


@click.command()
@click.argument("task_id")
@click.argument("paths", nargs=-1)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for them; made if it is missing. Default: one named after the task.",
)
@click.option(
    "--zip",
    "archive",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Download all of them as one zip archive with this name.",
)
@click.option("--force", is_flag=True, help="Replace other files of these names.")
@show.json_option
def download(  # noqa: PLR0913 - click passes every option as an argument
    task_id: str,
    *,
    paths: tuple[str, ...],
    folder: Path | None,
    archive: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Download the files that a task made: all, or those at PATHS. Checksums are compared.

    A file that is here already, with the same content, is not downloaded again.
    """
    if archive is not None and (paths or folder is not None):
        raise click.UsageError("--zip is for all files, and needs neither PATHS nor --to")
    api = connect()
    if archive is not None:
        saved = [_download_zip(api, task_id, archive, force=force)]
    else:
        rows = _chosen(task_id, _list(api, task_id), paths)
        target = folder or Path(one_line(task_id).replace("/", "_"))
        for row in rows:
            _local_path(target, str(row.get("path")))
        saved = [_download(api, task_id, row, target, force=force) for row in rows]
    if as_json:
        show.print_json([str(path) for path in saved])
        return
    for path in saved:
        click.echo(one_line(str(path)))
    if not saved:
        show.note("no artifacts")


def _list(api: Api, task_id: str) -> list[Json]:
    what, path = f"list the artifacts of task {task_id}", task_path(task_id)
    body = api.parsed(what, api.extension(what, "GET", f"{path}/artifacts", path))
    if not isinstance(body, list) or not all(isinstance(row, dict) for row in body):
        raise Refused(f"cannot {what}: the response is not a list")
    return body


def _chosen(task_id: str, rows: list[Json], paths: tuple[str, ...]) -> list[Json]:
    if not paths:
        return rows
    by_path = {str(row.get("path")): row for row in rows}
    for path in paths:
        if path not in by_path:
            hint = f"see 'task artifacts {task_id}'"
            raise Refused(f"cannot download {path}: the task has not made it; {hint}")
    return [by_path[path] for path in dict.fromkeys(paths)]


def _local_path(folder: Path, path: str) -> Path:
    """Return where an artifact goes. Raises Refused for a path that leads out of the folder."""
    parts = path.split("/")
    # The task chose it. A name that the terminal cannot show would not be seen for what it is.
    if any(part in {"", ".", ".."} or not part.isprintable() for part in parts):
        raise Refused(
            f"cannot download {one_line(path)!r}: no file here may have this path; --zip has it"
        )
    return folder.joinpath(*parts)


def _download(api: Api, task_id: str, row: Json, folder: Path, *, force: bool) -> Path:
    path, checksum = str(row.get("path")), str(row.get("checksum"))
    target = _local_path(folder, path)
    _require_inside(folder, target)
    if target.is_file() and _checksum(target) == checksum:
        return target
    _require_free(target, force=force)
    url = task_path(task_id, "artifacts", *path.split("/"))
    _save(api, f"download {path}", url, target, checksum)
    return target


def _download_zip(api: Api, task_id: str, target: Path, *, force: bool) -> Path:
    _require_free(target, force=force)
    path = task_path(task_id)
    what = f"download the artifacts of task {task_id}"
    _save(api, what, f"{path}/artifacts.zip", target, None, parent=path)
    return target


def _require_inside(folder: Path, target: Path) -> None:
    """Raise Refused if a link below the folder leads out of it."""
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise Refused(f"cannot write {target}: a link leads out of {folder}; use another --to")


def _require_free(target: Path, *, force: bool) -> None:
    if os.path.lexists(target) and not force:
        raise Refused(f"cannot write {target}: another file is there; use --force to replace it")


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _save(  # noqa: PLR0913, PLR0917 - what, from where, to where, and how it is checked
    api: Api, what: str, url: str, target: Path, checksum: str | None, parent: str = ""
) -> None:
    """Stream a response into a file that gets its name once it is whole. Raises ClientError."""
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with api.reaching(what), api.http.stream("GET", url) as response:
            if not response.is_success:
                response.read()
            if response.status_code in {404, 405} and parent:
                api.require_extension(what, parent)
            api.require_success(what, response)
            number, temporary = tempfile.mkstemp(dir=target.parent, prefix=".download-")
            digest = hashlib.sha256()
            with os.fdopen(number, "wb") as file:
                for block in _blocks(response):
                    digest.update(block)
                    file.write(block)
        if checksum is None and not zipfile.is_zipfile(temporary):
            # Its end is missing if an artifact was deleted meanwhile.
            raise Refused(f"cannot {what}: the archive is not whole; download it again")
        if checksum is not None and digest.hexdigest() != checksum:
            raise Refused(f"cannot {what}: its checksum differs; download it again")
        # mkstemp makes files for their owner only; this one is like any other of the user.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
        temporary = ""
    except OSError as error:
        raise Unconfigured(
            f"cannot write {target}: {error.strerror}; choose another --to"
        ) from error
    finally:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()


def _blocks(response: httpx.Response) -> Iterable[bytes]:
    return response.iter_bytes(_BLOCK)
