"""The orchestrator's URL, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from runner.errors import ConfigurationError

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
