"""The orchestrator's URL, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import suppress
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from runner.errors import ConfigurationError

_THIS_HOST = frozenset({"host.containers.internal", "host.docker.internal"})
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


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
        ConfigurationError: as `unusable_proxy` returns it: it is not an HTTP proxy.
    """
    host = urlsplit(url).hostname or ""
    _, proxy = _proxy_variable(url)
    # As curl reads them: an empty variable is none.
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if not proxy or _is_loopback(host) or is_exempt(host, no_proxy):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    parts = _split(proxy)
    if parts is None or parts.scheme not in {"http", "https"}:
        raise unusable_proxy(url)
    return proxy


def unusable_proxy(url: str) -> ConfigurationError:
    """Return the error for a proxy to `url` that cannot be used.

    It names the variable and not its value, which may contain a password.
    """
    name, _ = _proxy_variable(url)
    return ConfigurationError(
        f"cannot use the proxy in {name}: give it as http://HOST:PORT, or name "
        f"{urlsplit(url).hostname} in NO_PROXY"
    )


def _proxy_variable(url: str) -> tuple[str, str | None]:
    """Return the variable that names the proxy to `url`, and its value."""
    proxies, scheme = getproxies(), urlsplit(url).scheme
    scheme = scheme if proxies.get(scheme) else "all"
    name = f"{scheme}_proxy"
    return name if name in os.environ else name.upper(), proxies.get(scheme)


def is_exempt(host: str, no_proxy: str) -> bool:
    """Return whether NO_PROXY exempts a host from the proxy, by the rules of curl since 7.86.

    It is `*` alone, or a list, separated by commas or blanks, of host names, which include the
    names below them, of addresses, and of networks (10.0.0.0/8). An IPv6 address may be in
    brackets. Ports and patterns match nothing.
    """
    if no_proxy == "*":
        return True
    name = host.lower().removesuffix(".")
    entries = re.split(r"[,\s]+", no_proxy.lower())
    address = _address(name)
    if address is not None:
        return any(_contains(entry, address) for entry in entries)
    domains = {entry.removesuffix(".").removeprefix(".") for entry in entries} - {""}
    return any(f".{name}".endswith(f".{domain}") for domain in domains)


def _contains(entry: str, address: _Address) -> bool:
    """Return whether an entry of NO_PROXY is the address, or a network that contains it."""
    base, _, prefix = re.sub(r"[\[\]]", "", entry).partition("/")
    if not prefix.strip("0"):  # to curl, no network contains all addresses
        return _address(base) == address
    with suppress(ValueError):
        network = ipaddress.ip_network(f"{base}/{prefix}", strict=False)
        return prefix.isdecimal() and address in network
    return False


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
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> _Address | None:
    """Return the IP address that a host or an entry of NO_PROXY is; None for a name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    return None
