"""The proxy between the runner and the orchestrator."""

from __future__ import annotations

import pytest

from runner.api.address import proxy_to
from runner.errors import ConfigurationError

AWAY = "https://orchestrator.example.com"
PROXY = "http://proxy.example:3128"


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("value", [PROXY, PROXY.removeprefix("http://")])
def test_proxy_of_the_scheme_or_of_all(env: pytest.MonkeyPatch, variable: str, value: str) -> None:
    assert proxy_to(AWAY) is None
    env.setenv("HTTP_PROXY", "http://other.example")
    env.setenv(variable, value)
    assert proxy_to(AWAY) == PROXY


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        *((url, "") for url in ("http://127.0.0.1:8000", "http://localhost", "https://[::1]:8443")),
        *((AWAY, host) for host in (AWAY.removeprefix("https://"), ".example.com", "example.com")),
        *((AWAY, hosts) for hosts in ("other.example, example.com", "*")),
    ],
)
def test_loopback_and_hosts_in_no_proxy_need_none(
    env: pytest.MonkeyPatch, url: str, no_proxy: str
) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env.setenv(variable, PROXY)
    env.setenv("NO_PROXY", no_proxy)
    assert proxy_to(url) is None


@pytest.mark.parametrize(
    "value",
    ["socks5://h:1080", "ftp://h", "http://", "http://h:port", "http://[::1", "h h", "http://@"],
)
def test_unusable_proxy_is_refused_and_not_shown(env: pytest.MonkeyPatch, value: str) -> None:
    env.setenv("ALL_PROXY", value)
    with pytest.raises(ConfigurationError, match=r"^cannot use the proxy in ALL_PROXY: ") as caught:
        proxy_to(AWAY)
    assert value not in str(caught.value).replace("http://HOST:PORT", "")
