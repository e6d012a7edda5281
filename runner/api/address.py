"""The orchestrator's URL, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from runner.errors import ConfigurationError

_THIS_HOST = frozenset({"host.containers.internal", "host.docker.internal"})
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def check_orchestrator_url(url: str, *, allow_http: bool) -> str:
    """Return the URL without a trailing slash.

    Raises:
        ConfigurationError: it is not an https URL (http is for loopback, or with `allow_http`), or
            it has a user name, a query or a fragment.
    """
    # These two come first, since what they reject may be a secret: it is not repeated.
    if "@" in url:
        raise ConfigurationError(
            "cannot use --orchestrator-url with a user name or password in it: "
            "use --registration-token-file"
        )
    if "?" in url or "#" in url:
        raise ConfigurationError(
            f"cannot use --orchestrator-url {re.split('[?#]', url)[0]!r}…: "
            "leave out what follows ? or #"
        )
    parts = _split(url)
    if parts is None:
        raise ConfigurationError(
            f"cannot use --orchestrator-url {url!r}: give it as https://HOST[:PORT]"
        )
    if parts.scheme not in {"http", "https"}:
        raise ConfigurationError(
            f"cannot use --orchestrator-url {url!r}: it must begin with https://"
        )
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"cannot use --orchestrator-url {url!r}: plain http would show the keys to the "
            "network; use https, or give --allow-http"
        )
    return url.rstrip("/")


def url_to_hand_on(named: str, own: str, *, trusts_others: bool) -> str:
    """Return the URL for a task's reports: what its assignment names if that is safe, else our own.

    Safe is what lies at or below our own URL, under the same scheme, host and port, and this host
    as containers name it where our own is loopback; if others are trusted, any https URL. `own` is
    as `check_orchestrator_url` returns it.
    """
    named = named.rstrip("/")
    if named == own:
        return named
    parts, own_parts = _split(named), _split(own)
    # Programs differ in how they read these, and so in the host that they would send the key to.
    is_plain = not any(character in named for character in "@\\?#%") and "/.." not in named
    if parts is None or own_parts is None or not is_plain:
        return own
    if trusts_others and parts.scheme == "https":
        return named
    is_below = f"{parts.path}/".startswith(f"{own_parts.path}/")
    return named if is_below and _origin(parts, own_parts) == _origin(own_parts) else own


def _origin(parts: SplitResult, own: SplitResult | None = None) -> tuple[str, str, int]:
    """Return scheme, host and port; this host, as a container names it, is the one of `own`."""
    host = parts.hostname or ""
    if own is not None and host in _THIS_HOST and _is_loopback(own.hostname or ""):
        host = own.hostname or ""
    return parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80)


def proxy_to(url: str) -> str | None:
    """Return the proxy that the environment names for a checked URL; None for loopback.

    Raises:
        ConfigurationError: it is not an HTTP proxy. The message names the variable and not its
            value, which may contain a password.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    scheme = parts.scheme if proxies.get(parts.scheme) else "all"
    proxy = proxies.get(scheme)
    if not proxy or _is_loopback(host) or proxy_bypass(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    proxy_parts = _split(proxy)
    if proxy_parts is None or proxy_parts.scheme not in {"http", "https"}:
        name = f"{scheme}_proxy"
        variable = name if name in os.environ else name.upper()
        raise ConfigurationError(
            f"cannot use the proxy in {variable}: give it as http://HOST:PORT, or name "
            f"{host} in NO_PROXY"
        )
    return proxy


def without_password(proxy: str) -> str:
    """Return the host and port of a proxy's URL, which may be shown."""
    return urlsplit(proxy).netloc.rpartition("@")[2]


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL; None without a host or with an invalid port or character."""
    try:
        parts = urlsplit(url)
        is_usable = parts.port != 0 and parts.hostname and _PRINTABLE.fullmatch(url)
    except ValueError:
        return None
    return parts if is_usable else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
