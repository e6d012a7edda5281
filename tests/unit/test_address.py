"""The proxy between the runner and the orchestrator."""

from __future__ import annotations

import pytest

from runner.api.address import proxy_to
from runner.errors import ConfigurationError

AWAY = "https://orchestrator.example.com"
PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("value", [PROXY, PROXY.removeprefix("http://")])
def test_proxy_of_the_scheme_is_taken_else_that_for_all(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://other.example")
    monkeypatch.setenv(variable, value)

    assert proxy_to(AWAY) == PROXY


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "https://[::1]:8443"])
def test_loopback_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert proxy_to(AWAY) is None, "without a variable"
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, PROXY)

    assert proxy_to(url) is None


@pytest.mark.parametrize(
    "value",
    ["orchestrator.example.com", ".example.com", "example.com", "other.example, example.com", "*"],
)
def test_host_in_no_proxy_needs_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", value)

    assert proxy_to(AWAY) is None


@pytest.mark.parametrize(
    "value",
    ["socks5://h:1080", "ftp://h", "http://", "http://h:port", "http://[::1", "h h", "http://@"],
)
def test_proxy_that_cannot_be_used_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)

    with pytest.raises(ConfigurationError) as caught:
        proxy_to(AWAY)

    assert str(caught.value).startswith("cannot use the proxy in ALL_PROXY: ")
    shown = str(caught.value).replace("http://HOST:PORT", "")
    assert value not in shown
