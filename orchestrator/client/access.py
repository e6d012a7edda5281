"""Which orchestrator, and with which key: from the environment, or from the file of `login`."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.client.errors import Unconfigured

URL_VARIABLE = "VICTORIA_ORCHESTRATOR_URL"
KEY_VARIABLE = "VICTORIA_ORCHESTRATOR_API_KEY"
HTTP_VARIABLE = "VICTORIA_ORCHESTRATOR_ALLOW_HTTP"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SENDABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Access:
    """An orchestrator and a key for it."""

    url: str
    key: str = field(repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether the orchestrator is on this machine."""
        return urlsplit(self.url).hostname in _LOOPBACK


def login_file() -> Path:
    """Return the path of the file that `login` writes."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "victoria-orchestrator" / "login.json"


def check_url(url: str) -> str:
    """Return the URL without a slash at its end. Raises Unconfigured if it cannot be used."""
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.scheme in {"http", "https"}
        is_usable = is_usable and not parts.query and not parts.fragment and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable or not _SENDABLE.fullmatch(url):
        raise Unconfigured("cannot use the URL: it is not one; write https://HOST or http://HOST")
    if parts.username is not None or parts.password is not None:
        raise Unconfigured("cannot use the URL: it holds a password; write https://HOST")
    is_open = parts.scheme == "http" and parts.hostname not in _LOOPBACK
    if is_open and os.environ.get(HTTP_VARIABLE) != "1":
        raise Unconfigured(
            "cannot use the URL: http would show the key to the network; use https, or set"
            f" {HTTP_VARIABLE}=1"
        )
    return url


def check_key(key: str) -> str:
    """Return the key. Raises Unconfigured if no header can carry it."""
    key = key.strip()
    if not _SENDABLE.fullmatch(key):
        raise Unconfigured("cannot use the key: it is empty, or has characters that no key has")
    return key


def load_access() -> Access:
    """Return the URL and the key of the environment, else of the file. Raises Unconfigured."""
    url, key = os.environ.get(URL_VARIABLE, ""), os.environ.get(KEY_VARIABLE, "")
    if not (url and key):
        stored = read_login()
        if not url:
            url, key = stored.get("url", ""), key or stored.get("api_key", "")
        elif not key and stored.get("url") == url.strip().rstrip("/"):
            # The stored key goes to the orchestrator that it was stored for, and to no other.
            key = stored.get("api_key", "")
    missing = [name for name, value in ((URL_VARIABLE, url), (KEY_VARIABLE, key)) if not value]
    if missing:
        raise Unconfigured(
            f"cannot call an orchestrator: {' and '.join(missing)} not set;"
            " run 'victoria-orchestrator login'"
        )
    return Access(check_url(url), check_key(key))


def read_login() -> dict[str, str]:
    """Return what `login` has stored, {} if nothing. Raises Unconfigured."""
    path = login_file()
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = json.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Unconfigured(f"cannot read {path}: {error.strerror}; see its permissions") from error
    except ValueError:
        content = None
    if stat.S_IMODE(mode) & 0o077:
        raise Unconfigured(f"cannot use {path}: other users may read it; run chmod 600 on it")
    if not isinstance(content, dict) or not all(isinstance(one, str) for one in content.values()):
        raise Unconfigured(f"cannot use {path}: it is damaged; run 'victoria-orchestrator login'")
    return content


def store_login(access: Access) -> Path:
    """Write the file of `login`, for its owner only, whole or not at all. Raises Unconfigured."""
    path = login_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600 from the first moment on.
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".login-")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump({"url": access.url, "api_key": access.key}, file)
            file.write("\n")
        Path(temporary).replace(path)
    except OSError as error:
        raise Unconfigured(f"cannot write {path}: {error.strerror}; see its folder") from error
    return path
