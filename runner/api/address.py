"""The orchestrator's URL, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit
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
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or not parts.hostname or not _PRINTABLE.fullmatch(url):
        raise ConfigurationError(
            f"cannot use --orchestrator-url {url!r}: give it as https://HOST[:PORT]"
        )
    if parts.scheme not in {"http", "https"}:
        raise ConfigurationError(
            f"cannot use --orchestrator-url {url!r}: it must begin with https://"
        )
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname):
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
    if not _is_http(proxy):
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


def _is_http(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_complete = has_port and bool(parts.hostname) and _PRINTABLE.fullmatch(proxy) is not None
    return is_complete and parts.scheme in {"http", "https"}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
