"""Where the orchestrator is, and which proxy leads there."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from runner.errors import ConfigurationError

_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def check_orchestrator_url(url: str, *, allow_http: bool) -> str:
    """Give the URL without a trailing slash, or say what is wrong with it.

    Raises:
        ConfigurationError: it is no https URL, or it is http to another host and that was not
            allowed, or it carries a user name, a query or a fragment.
    """
    # These two come first: what they refuse may be a secret, and is not shown.
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
            "network; use https, or say --allow-http"
        )
    return url.rstrip("/")


def proxy_to(url: str) -> str | None:
    """Give the proxy for a URL that was checked, as the environment has it; None for loopback.

    Raises:
        ConfigurationError: it is none that speaks HTTP. The sentence names the variable; its text
            may hold a password.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    scheme = parts.scheme if proxies.get(parts.scheme) else "all"
    told = proxies.get(scheme)
    if not told or _is_loopback(host) or proxy_bypass(host):
        return None
    proxy = told if "://" in told else f"http://{told}"
    if not _is_http(proxy):
        name = f"{scheme}_proxy"
        variable = name if name in os.environ else name.upper()
        raise ConfigurationError(
            f"cannot use the proxy in {variable}: give it as http://HOST:PORT, or name "
            f"{host} in NO_PROXY"
        )
    return proxy


def without_password(proxy: str) -> str:
    """Give what may be shown of a proxy: its host, and its port if it has one."""
    return urlsplit(proxy).netloc.rpartition("@")[2]


def _is_http(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_whole = has_port and bool(parts.hostname) and _PRINTABLE.fullmatch(proxy) is not None
    return is_whole and parts.scheme in {"http", "https"}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
