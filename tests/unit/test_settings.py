"""A setting that cannot be used is refused with a sentence that has no secret in it."""

import dataclasses
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from runner.api.address import check_orchestrator_url, url_to_hand_on
from runner.env_file import check_env_file
from runner.errors import ConfigurationError
from runner.redaction import Secret
from runner.settings import (
    Settings,
    check_ca_file,
    check_capabilities,
    check_cpus,
    check_engine_env,
    check_gpus,
    check_image,
    check_image_policy,
    check_memory,
    check_mountable,
    check_name,
    check_run_arg,
    default_state_dir,
    expand_home,
    make_folder,
    parse_positive,
    parse_size,
    parse_tags,
    parse_token,
    read_token_file,
)

Check = Callable[[str], object]
SECRET = "hunter2"  # noqa: S105 - opens nothing
IMAGE = "ghcr.io/elcanotek/victoria-terminal:1.2"
check_https_url = partial(check_orchestrator_url, allow_http=False)
check_url = partial(check_orchestrator_url, allow_http=True)
check_policy = partial(check_image_policy, allowed=("docker.io/*", "ghcr.io/elcanotek/*"))
token_of = partial(parse_token, source="--registration-token")


@pytest.mark.parametrize(
    ("own", "named", "is_handed_on"),
    [
        ("https://o.example", "https://o.example/", True),
        ("https://o.example", "https://O.EXAMPLE:443/api", True),
        ("https://o.example/v", "https://o.example/v/x", True),
        ("https://o.example/v", "https://o.example/victim", False),
        ("https://o.example/v", "https://o.example/v/../x", False),
        ("https://o.example/v", "https://o.example", False),
        ("https://o.example", "http://o.example", False),
        ("https://o.example", "https://o.example:8443", False),
        ("https://o.example", "https://evil.example", False),
        ("https://o.example", "https://o.example@evil.example", False),
        ("https://o.example", "https://evil.example\\@o.example", False),
        ("https://o.example", "https://o.example/?x", False),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "http://host.containers.internal:8000", True),
        ("http://127.0.0.1:8000", "http://host.containers.internal:8001", False),
        ("http://10.0.0.1", "http://host.containers.internal", False),
        ("http://10.0.0.1", "http://10.0.0.2", False),
    ],
)
def test_url_of_an_assignment_is_handed_on_only_within_the_runners_own(
    own: str, named: str, *, is_handed_on: bool
) -> None:
    expected = named.rstrip("/") if is_handed_on else own
    assert url_to_hand_on(named, own, trusts_others=False) == expected
    is_plain_https = named.startswith("https:") and not set("@\\?").intersection(named)
    is_trusted = is_handed_on or (is_plain_https and ".." not in named)
    expected = named.rstrip("/") if is_trusted else own
    assert url_to_hand_on(named, own, trusts_others=True) == expected


def parse_tag(pair: str) -> object:
    return parse_tags([pair])


def check_capability(name: str) -> object:
    return check_capabilities((name,))


def check_home(path: str) -> object:
    return check_mountable(Path(path), "--victoria-home")


def expand(path: str) -> str:
    return str(expand_home(Path(path), "--state-dir"))


def refusal(check: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("check", "texts"),
    [
        (check_https_url, ["HTTPS://A.Example:8443/api", "https://[2001:db8::1]:8443"]),
        (check_https_url, ["http://LOCALHOST:8000", "http://127.8.8.8", "http://[::1]:8000"]),
        (check_url, ["http://10.0.0.7"]),
        (check_name, ["n", "client-acme-prod-1", "mit Leerzeichen", "名前", "n" * 255]),
        (check_image, [IMAGE, "localhost:5000/victoria", "victoria@sha256:" + "0" * 64]),
        (check_memory, ["8g", "1.5GiB"]),
        (check_cpus, ["2", "0.5", "1e0"]),
        (check_gpus, ["all", "0,1", "GPU-8a3f:0"]),
        (check_engine_env, ["AWS_PROFILE", "_x1"]),
        (check_run_arg, ["--network=host", "--names", "--rmi"]),
    ],
)
def test_usable_texts_are_used_as_they_are(check: Check, texts: list[str]) -> None:
    assert [check(text) for text in texts] == texts
    assert check_url("https://a.example/api/") == "https://a.example/api", "but for the last slash"


URL = "--orchestrator-url {!r}: "
PLAIN = URL + "plain http would show the keys to the network; use https, or give --allow-http"
AS_HTTPS = URL + "give it as https://HOST[:PORT]"
NO_SCHEME = URL + "it must begin with https://"
NO_QUERY = "--orchestrator-url 'https://a.example/'…: leave out what follows ? or #"
NAME = "--name {!r}: give 1 to 255 characters without line breaks"
TAG = "--tag {!r}: give it as KEY=VALUE"
LONG_TAG = "--tag {!r}: give a key and a value of at most 255 characters"
CAPABILITY = "--capability {!r}: give at most 255 characters without line breaks"
BAD_IMAGE = "--container-image {!r}: it is not an image name; give it as REGISTRY/NAME:TAG"
POLICY = "--container-image {}: no --allow-image pattern matches it"
MEMORY = "--memory {!r}: give a number with k, m or g, such as 8g"
CPUS = "--cpus {!r}: give a number of cores, such as 2 or 0.5"
GPUS = "--gpus {!r}: give all, or indices with commas, such as 0,1"
ENGINE_ENV = "--engine-env {!r}: it is the runner's own; leave it out"
ENV_NAME = (
    "--engine-env {!r}: give the name alone; the value is that of the runner's own environment"
)
RUN_ARG = "--run-arg {}: the runner itself names, starts and removes the containers; leave it out"
COLON = "--victoria-home {}: no engine mounts a path with a colon; choose another"
NOT_UTF8 = "--victoria-home {!r}: it is not UTF-8; choose another"
NO_USER = "--state-dir {}: there is no such user, or no home; give the whole path"
NO_TOKEN = "the registration token from --registration-token: it is empty"  # noqa: S105 - a sentence
BAD_TOKEN = NO_TOKEN.replace("is empty", "has blanks, line breaks or non-ASCII characters inside")
UNUSABLE: list[tuple[Check, str, list[str]]] = [
    (check_https_url, PLAIN, ["http://10.0.0.7:8000", "http://0.0.0.0", "http://[2001:db8::1]"]),
    (check_https_url, PLAIN, ["http://localhost.example", "http://127.0.0.1.example"]),
    (check_url, AS_HTTPS, ["", "a.example", "https:///path", "https://[::1", "https://ä.example"]),
    (check_url, AS_HTTPS, [f"https://a.example{rest}" for rest in (":port", ":99999", ":0", "\n")]),
    (check_url, NO_SCHEME, ["file://a/etc/passwd"]),
    (check_url, NO_QUERY, [f"https://a.example/{rest}" for rest in ("?token=hunter2", "#x", "?")]),
    (check_name, NAME, ["", "  ", "\t", "a\nb", "a\x00b", "a\x7f"]),
    (check_name, NAME.format("n" * 60), ["n" * 256]),
    (parse_tag, TAG, ["env", "", "=prod", " =prod", "env=a\nb", "e\x00=v"]),
    (parse_tag, LONG_TAG.format("k" * 60), ["k" * 256 + "="]),
    (parse_tag, LONG_TAG.format("k=" + "v" * 58), ["k=" + "v" * 256]),
    (check_capability, CAPABILITY, ["a\nb", "c\x7f"]),
    (check_capability, CAPABILITY.format("c" * 60), ["c" * 256]),
    (check_name, "--name {!r}: it is not UTF-8 text", ["n\udcff"]),
    (parse_tag, "--tag {!r}: it is not UTF-8 text", ["k=\udcff", "\udcff="]),
    (check_capability, "--capability {!r}: it is not UTF-8 text", ["\udcff"]),
    (check_image, BAD_IMAGE, ["", "--privileged", "-v", "two words", "a\nb", "bild-ü"]),
    (check_policy, POLICY, ["ghcr.io/evil/victoria", "evil/ghcr.io/e/x", "GHCR.IO/elcanotek/x"]),
    (check_memory, MEMORY, ["lots", "-1g", "0", "0G", "8 gigs", "", "8g -v"]),
    (check_cpus, CPUS, ["two", "0", "-1", "nan", "inf", ""]),
    (check_gpus, GPUS, ["", "0,,1", "0 1", "all,", "0;rm"]),
    (check_engine_env, ENGINE_ENV, ["VICTORIA_RUNNER_REGISTRATION_TOKEN", "NOTIFY_SOCKET"]),
    (check_engine_env, ENV_NAME, ["", "1x", "a b", "ä"]),
    (check_engine_env, ENV_NAME.format("KEY"), ["KEY=hunter2"]),
    (check_run_arg, RUN_ARG, ["--rm", "--restart=always", "--name=x", "-d", "--pull=never"]),
    (check_home, COLON, ["/:"]),
    (check_home, NOT_UTF8, ["/\udcfc"]),
    (expand, NO_USER, ["~none/x"]),
    (token_of, NO_TOKEN, ["", " ", "\n"]),
    (token_of, BAD_TOKEN, ["hunter2 hunter2", "hunter2\r\nX-Evil: 1", "hünter2", "a\x00", "a\tb"]),
]


@pytest.mark.parametrize(("check", "sentence", "texts"), UNUSABLE)
def test_unusable_texts_are_refused(check: Check, sentence: str, texts: list[str]) -> None:
    for text in texts:
        assert refusal(check, text) == f"cannot use {sentence.format(text)}"


@pytest.mark.parametrize("scheme", ["https", "http", "ftp"])
@pytest.mark.parametrize("rest", ["", "o.example.com:99999", "o example.com", "10.0.0.7"])
def test_secret_in_a_url_is_refused_and_not_repeated(scheme: str, rest: str) -> None:
    for url in (f"{scheme}://user:hunter2@{rest}", f"{scheme}://hunter2@{rest}"):
        assert SECRET not in refusal(check_https_url, url)
    for url in (f"user:hunter2@{rest}", f"{scheme}://{rest}?token=hunter2", f"{rest}#hunter2"):
        assert SECRET not in refusal(check_https_url, url)


def test_tags_become_a_mapping_and_each_key_is_given_once() -> None:
    assert parse_tags(()) == {}
    assert parse_tags(("env=prod", "gpu=", "note=a=b")) == {"env": "prod", "gpu": "", "note": "a=b"}
    texts = [f"t{number}" for number in range(101)]
    assert "101 times: give at most 100" in refusal(parse_tags, [f"{text}=" for text in texts])
    assert "101 times: give at most 100" in refusal(check_capabilities, texts)
    expected = "cannot use --tag 'env=dev': the key 'env' is given twice"
    assert refusal(parse_tags, ("env=prod", "env=dev")) == expected


def test_image_is_allowed_without_patterns_and_by_one_that_matches() -> None:
    check_image_policy(IMAGE, ())
    check_policy(IMAGE)


def test_size_is_parsed_with_units_of_1024() -> None:
    sizes = {"0": 0, "500B": 500, "1024": 1 << 10, "1k": 1 << 10, "500M": 500 << 20}
    sizes |= {"2G": 2 << 30, "2GiB": 2 << 30, "2 gb": 2 << 30, " 1T ": 1 << 40}
    assert {text: parse_size(text) for text in sizes} == sizes


NO_SIZE = "is not a size: give a number with K, M, G or T"
NO_SIZES = ["", "G", "-1", "1.5G", "1X", "1 G B", "0x10", "1e3", "1_000"]


@pytest.mark.parametrize(
    ("parse", "texts", "reason"),
    [
        (parse_size, NO_SIZES, NO_SIZE),
        (parse_positive, ["often", ""], "is not a number"),
        (parse_positive, ["0", "-1", "nan", "inf"], "it must be more than 0"),
    ],
)
def test_bad_number_is_an_error_of_usage(parse: Check, texts: list[str], reason: str) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=reason):
            parse(text)


def test_token_is_taken_without_the_white_space_around_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"  {SECRET}\n", encoding="utf-8")
    assert read_token_file(tmp_path / "token") == token_of(f"{SECRET}\n") == Secret(SECRET)


def test_file_has_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert check_env_file(Path("file")) == check_ca_file(Path("file")) == tmp_path / "file"


NOT_THERE = "{}: no such file or directory"
NOT_TEXT = "{}: it is not UTF-8 text"
TOKEN_FILE = "read --registration-token-file "  # noqa: S105 - a sentence


@pytest.mark.parametrize(
    ("check", "content", "sentence"),
    [
        (check_env_file, None, "read --env-file " + NOT_THERE),
        (check_env_file, b"KEY=hunter2\xff", "read --env-file " + NOT_TEXT),
        (check_env_file, b"KEY=hunter2\x00\n", "use --env-file {}: it has a NUL character in it"),
        (check_ca_file, None, "read --ca-file " + NOT_THERE),
        (read_token_file, None, TOKEN_FILE + NOT_THERE),
        (read_token_file, b"hunter2\xff", TOKEN_FILE + NOT_TEXT),
        (read_token_file, b"hunter2\nx", "use the registration token from {}: it has blanks, line"),
    ],
)
def test_unusable_file_is_named_and_its_content_is_not_repeated(
    tmp_path: Path, check: Callable[[Path], object], content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    shown = refusal(check, path)
    assert shown.startswith(f"cannot {sentence.format(path)}")
    assert SECRET not in shown


def test_folder_is_made_for_us_alone_and_keeps_its_mode_if_it_exists(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "deep" / "state", "--state-dir")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    assert stat.S_IMODE(make_folder(made, "--victoria-home").stat().st_mode) == 0o755


def test_file_in_place_of_a_folder_is_named_with_its_option(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, reason in ((file, "file exists"), (file / "state", "not a directory")):
        expected = f"cannot make --state-dir {path}: {reason}"
        assert refusal(make_folder, path, "--state-dir") == expected


@pytest.mark.parametrize(
    ("of_systemd", "of_the_user", "expected"),
    [
        ("/one:/two", "/xdg", "/one"),
        ("", "/xdg", "/xdg/victoria-runner"),
        ("", "", "/home/me/.local/state/victoria-runner"),
    ],
)
def test_state_folder_is_systemd_s_else_the_user_s(
    monkeypatch: pytest.MonkeyPatch, of_systemd: str, of_the_user: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STATE_DIRECTORY", of_systemd)
    monkeypatch.setenv("XDG_STATE_HOME", of_the_user)
    assert default_state_dir() == Path(expected)


def test_home_stands_for_a_tilde_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["~", "~/a b", "/a/~", "a"]
    assert [expand(path) for path in paths] == ["/home/me", "/home/me/a b", "/a/~", "a"]
    monkeypatch.setenv("XDG_STATE_HOME", "~no-such-user")
    assert refusal(default_state_dir).startswith("cannot use the XDG state folder ~no-such-user: ")


def test_secret_is_shown_only_when_it_is_revealed(tmp_path: Path) -> None:
    settings = Settings("https://o.example.com", "n", tmp_path, tmp_path, Secret(SECRET))
    for shown in (repr, str, "{}".format, "{0!r:>20}".format, "{0!s}".format):
        assert SECRET not in shown(settings.registration_token)
        assert SECRET not in shown(settings)
    assert SECRET not in str(dataclasses.asdict(settings))
    assert settings.registration_token.reveal() == SECRET
    assert Secret("a") not in {Secret("b"), "a"}
    assert Secret("a") in {Secret("a"), Secret("b")}
    assert not Secret("")
