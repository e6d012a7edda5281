"""Every flag that cannot be used is refused with a sentence, and no secret is in any of them."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from runner.api.address import check_orchestrator_url
from runner.errors import EXIT_CONFIGURATION, ConfigurationError
from runner.model import Limits, PullPolicy
from runner.redaction import Secret
from runner.settings import (
    Settings,
    check_env_file,
    check_image,
    check_limits,
    check_mountable,
    check_name,
    check_readable,
    check_tags,
    check_token,
    default_name,
    default_state_dir,
    in_home,
    make_folder,
    parse_size,
    read_token_file,
)

AS_HTTPS = "give it as https://HOST[:PORT]"
PLAIN_HTTP = "plain http would show the keys to the network; use https, or say --allow-http"


# --orchestrator-url


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://quarterback.example.com", "https://quarterback.example.com"),
        ("https://quarterback.example.com/", "https://quarterback.example.com"),
        ("https://quarterback.example.com:8443/api/", "https://quarterback.example.com:8443/api"),
        ("HTTPS://Quarterback.Example.COM", "HTTPS://Quarterback.Example.COM"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("https://10.0.0.7", "https://10.0.0.7"),
    ],
)
def test_https_url_is_taken_without_a_slash_at_its_end(url: str, taken: str) -> None:
    assert check_orchestrator_url(url, allow_http=False) == taken


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "http://127.0.0.1:8000",
        "http://127.8.8.8",
        "http://[::1]:8000",
        "http://LOCALHOST",
    ],
)
def test_plain_http_is_taken_on_loopback(url: str) -> None:
    assert check_orchestrator_url(url, allow_http=False) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://quarterback.example.com",
        "http://10.0.0.7:8000",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://[2001:db8::1]",
        "http://0.0.0.0:8000",
    ],
)
def test_plain_http_to_another_host_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_orchestrator_url(url, allow_http=False)

    assert str(caught.value) == f"cannot use --orchestrator-url {url!r}: {PLAIN_HTTP}"


def test_plain_http_to_another_host_is_taken_when_it_is_allowed() -> None:
    assert check_orchestrator_url("http://10.0.0.7", allow_http=True) == "http://10.0.0.7"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", f"'': {AS_HTTPS}"),
        ("quarterback.example.com", f"'quarterback.example.com': {AS_HTTPS}"),
        ("https://", f"'https://': {AS_HTTPS}"),
        ("https:///path", f"'https:///path': {AS_HTTPS}"),
        ("https://o.example.com:port", f"'https://o.example.com:port': {AS_HTTPS}"),
        ("https://o.example.com:99999", f"'https://o.example.com:99999': {AS_HTTPS}"),
        ("https://o.example.com:0", f"'https://o.example.com:0': {AS_HTTPS}"),
        ("https://[::1", f"'https://[::1': {AS_HTTPS}"),
        ("https://o example.com", f"'https://o example.com': {AS_HTTPS}"),
        ("https://o.example.com\n", f"'https://o.example.com\\n': {AS_HTTPS}"),
        ("https://käse.example", f"'https://käse.example': {AS_HTTPS}"),
        ("ftp://o.example.com", "'ftp://o.example.com': it must begin with https://"),
        ("file://o/etc/passwd", "'file://o/etc/passwd': it must begin with https://"),
        (
            "https://o.example.com/?token=hunter2",
            "'https://o.example.com/'…: leave out what follows ? or #",
        ),
        ("https://o.example.com/#x", "'https://o.example.com/'…: leave out what follows ? or #"),
        ("https://o.example.com?", "'https://o.example.com'…: leave out what follows ? or #"),
    ],
)
def test_url_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_orchestrator_url(url, allow_http=True)

    assert str(caught.value) == f"cannot use --orchestrator-url {said}"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@o.example.com",
        "https://hunter2@o.example.com",
        "ftp://user:hunter2@o.example.com",
        "https://user:hunter2@",
        "https://user:hunter2@o.example.com:99999",
        "https://user:hunter2@o example.com",
        "http://user:hunter2@10.0.0.7",
        "user:hunter2@o.example.com",
        "https://o.example.com?token=hunter2",
        "o.example.com#hunter2",
    ],
)
def test_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_orchestrator_url(url, allow_http=False)

    assert "hunter2" not in str(caught.value)


# --name, --tag


@pytest.mark.parametrize("name", ["n", "client-acme-prod-1", "mit Leerzeichen", "名前", "n" * 255])
def test_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "  ", "\t", "a\nb", "a\x00b", "a\x7f", "n" * 256])
def test_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_name(name)

    assert str(caught.value) == (
        f"cannot use --name {name[:60]!r}: give 1 to 255 characters without line breaks"
    )


def test_name_is_the_host_s_unless_another_is_given() -> None:
    assert default_name() == os.uname().nodename


def test_tags_become_a_mapping() -> None:
    assert check_tags(("env=prod", "gpu=", "note=a=b")) == {"env": "prod", "gpu": "", "note": "a=b"}


def test_no_tags_are_no_tags() -> None:
    assert check_tags(()) == {}


@pytest.mark.parametrize("pair", ["env", "", "=prod", " =prod", "env=a\nb", "e\x00=v"])
def test_tag_that_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_tags((pair,))

    assert str(caught.value) == f"cannot use --tag {pair!r}: give it as KEY=VALUE"


def test_tag_given_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_tags(("env=prod", "env=dev"))

    assert str(caught.value) == "cannot use --tag 'env=dev': the key 'env' is given twice"


# --registration-token, --registration-token-file


def test_token_is_taken_without_the_white_space_around_it() -> None:
    assert check_token("  s3cret\n", "--registration-token") == Secret("s3cret")


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_empty_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_token(token, "--registration-token")

    assert str(caught.value) == (
        "cannot use the registration token from --registration-token: it is empty"
    )


@pytest.mark.parametrize(
    "token",
    ["hunter2 hunter2", "hunter2\r\nX-Evil: 1", "hünter2hunter2", "hunter2\x00", "a\thunter2"],
)
def test_token_that_no_header_can_carry_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_token(token, "VICTORIA_RUNNER_REGISTRATION_TOKEN")

    assert str(caught.value) == (
        "cannot use the registration token from VICTORIA_RUNNER_REGISTRATION_TOKEN: it has "
        "blanks, line breaks or non-ASCII characters inside"
    )


def test_token_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n", encoding="utf-8")

    assert read_token_file(tmp_path / "token") == Secret("s3cret")


def test_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_token_file(tmp_path / "token")

    assert str(caught.value) == (
        f"cannot read --registration-token-file {tmp_path / 'token'}: no such file or directory"
    )


def test_token_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory"):
        read_token_file(tmp_path)


def test_token_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"hunter2\xff")

    with pytest.raises(ConfigurationError) as caught:
        read_token_file(tmp_path / "token")

    assert str(caught.value) == (
        f"cannot read --registration-token-file {tmp_path / 'token'}: it is not UTF-8 text"
    )


def test_token_file_with_two_lines_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\nhunter3\n", encoding="utf-8")

    with pytest.raises(ConfigurationError) as caught:
        read_token_file(tmp_path / "token")

    assert "hunter" not in str(caught.value)
    assert str(tmp_path / "token") in str(caught.value)


# --env-file


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# a comment\n",
        "  # an indented comment\n",
        "API_KEY=hunter2\n",
        "API_KEY=hunter2",
        "EMPTY=\n",
        "EQUALS=a=b=c\n",
        "BLANKS=a b c\n",
        "QUOTES=\"a\" 'b'\n",
        "HASH=a#b\n",
        "UMLAUT=ü\n",
        "WINDOWS=yes\r\nLINES=too\r\n",
        "with.dots-and-dashes=1\n",
    ],
)
def test_env_file_of_pairs_is_taken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.env"
    path.write_bytes(text.encode())

    assert check_env_file(path) == path


def test_env_file_is_known_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.env").write_text("A=1", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    relative = (tmp_path / "task.env").relative_to(tmp_path)

    assert check_env_file(relative) == tmp_path / "task.env"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("hunter2\n", 1),
        ("A=1\nhunter2", 2),
        ("# so\n\nexport KEY=hunter2\n", 3),
        ("=hunter2\n", 1),
        ("KEY =hunter2\n", 1),
        ("KEY: hunter2\n", 1),
        ("A=1\rB=hunter2\n", 1),
        ("\ufeffKEY=hunter2\n", 1),
    ],
    ids=["bare", "no end", "export", "no name", "blank", "yaml", "return", "byte order mark"],
)
def test_broken_line_of_an_env_file_is_numbered_and_not_repeated(
    tmp_path: Path, text: str, number: int
) -> None:
    path = tmp_path / "task.env"
    path.write_bytes(text.encode())

    with pytest.raises(ConfigurationError) as caught:
        check_env_file(path)

    assert str(caught.value) == f"cannot use --env-file {path}: line {number} is not NAME=VALUE"


def test_env_file_with_a_nul_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.env"
    path.write_bytes(b"KEY=hunter2\x00\n")

    with pytest.raises(ConfigurationError) as caught:
        check_env_file(path)

    assert str(caught.value) == f"cannot use --env-file {path}: it has a NUL character in it"


def test_env_file_that_is_no_text_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "task.env"
    path.write_bytes(b"KEY=hunter2\xff")

    with pytest.raises(ConfigurationError) as caught:
        check_env_file(path)

    assert str(caught.value) == f"cannot read --env-file {path}: it is not UTF-8 text"


def test_env_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file or directory"):
        check_env_file(tmp_path / "task.env")


# Other files and folders


def test_readable_file_is_known_by_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"")

    assert check_readable(tmp_path / "." / "ca.pem", "--ca-file") == tmp_path / "ca.pem"


def test_file_that_cannot_be_read_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_readable(tmp_path / "ca.pem", "--ca-file")

    assert str(caught.value) == (
        f"cannot read --ca-file {tmp_path / 'ca.pem'}: no such file or directory"
    )


def test_folder_is_made_for_us_alone(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "deep" / "state", "--state-dir")

    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_folder_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)

    assert stat.S_IMODE(make_folder(tmp_path / "home", "--victoria-home").stat().st_mode) == 0o755


def test_file_in_place_of_a_folder_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")

    with pytest.raises(ConfigurationError) as caught:
        make_folder(tmp_path / "state", "--state-dir")

    assert str(caught.value) == f"cannot make --state-dir {tmp_path / 'state'}: file exists"


def test_folder_below_a_file_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigurationError, match=r"cannot make --state-dir .*: not a directory"):
        make_folder(tmp_path / "file" / "state", "--state-dir")


def test_state_folder_is_systemd_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path / 'one'}:{tmp_path / 'two'}")

    assert default_state_dir() == tmp_path / "one"


def test_state_folder_is_below_the_xdg_one_without_systemd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert default_state_dir() == tmp_path / "victoria-runner"


@pytest.mark.parametrize("unset", [None, ""])
def test_state_folder_is_in_the_home_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unset: str | None
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    if unset is not None:
        monkeypatch.setenv("XDG_STATE_HOME", unset)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert default_state_dir() == tmp_path / ".local" / "state" / "victoria-runner"


# --container-image, --allow-image


@pytest.mark.parametrize(
    "image",
    [
        "ghcr.io/elcanotek/victoria-terminal:latest",
        "localhost:5000/victoria",
        "victoria@sha256:" + "0" * 64,
    ],
)
def test_any_image_is_taken_without_a_policy(image: str) -> None:
    assert check_image(image, ()) == image


def test_image_that_a_pattern_matches_is_taken() -> None:
    image = "ghcr.io/elcanotek/victoria-terminal:1.2"

    assert check_image(image, ("docker.io/*", "ghcr.io/elcanotek/*")) == image


@pytest.mark.parametrize(
    "image", ["ghcr.io/evil/victoria", "GHCR.IO/elcanotek/x", "evil/ghcr.io/elcanotek/x"]
)
def test_image_that_no_pattern_matches_is_refused(image: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_image(image, ("ghcr.io/elcanotek/*",))

    assert str(caught.value) == (
        f"cannot use --container-image {image}: no --allow-image pattern matches it"
    )


@pytest.mark.parametrize("image", ["", "--privileged", "-v", "two words", "a\nb", "bild-ü"])
def test_what_is_no_image_name_is_refused(image: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_image(image, ())

    assert str(caught.value) == f"cannot use --container-image {image!r}: it is no image name"


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("500B", 500),
        ("1k", 1 << 10),
        ("500M", 500 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("2 gb", 2 << 30),
        (" 1T ", 1 << 40),
    ],
)
def test_size_is_read_with_units_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1X", "1 G B", "0x10", "1e3", "1_000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: give a number with K, M, G or T"):
        parse_size(text)


# Secret


def test_secret_shows_itself_to_nobody(tmp_path: Path) -> None:
    settings = Settings(
        orchestrator_url="https://o.example.com",
        name="n",
        victoria_home=tmp_path,
        state_dir=tmp_path,
        registration_token=Secret("hunter2"),
    )

    for shown in (repr, str, "{}".format, "{0!r:>20}".format, "{0!s}".format):
        assert "hunter2" not in shown(settings.registration_token)
        assert "hunter2" not in shown(settings)
    assert "hunter2" not in str(dataclasses.asdict(settings))


def test_secret_reveals_itself_when_asked() -> None:
    assert Secret("hunter2").reveal() == "hunter2"


def test_secrets_of_one_text_are_equal() -> None:
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_secret_without_a_text_is_false() -> None:
    assert not Secret("")
    assert Secret("a")


# The whole


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    settings = Settings("https://o.example.com", "n", tmp_path, tmp_path)

    assert settings.poll_interval_s == 30
    assert settings.container_image == "ghcr.io/elcanotek/victoria-terminal:latest"
    assert settings.env_file is None
    assert settings.container_runtime == "auto"
    assert settings.max_tasks == 1
    assert settings.pull is PullPolicy.NEWER
    assert settings.limits == Limits(None, None, None)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = Settings("https://o.example.com", "n", tmp_path, tmp_path)

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.name = "other"  # type: ignore[misc] # that is the claim


def test_unusable_configuration_ends_with_its_own_exit_code() -> None:
    assert ConfigurationError.exit_code == EXIT_CONFIGURATION == 78


# Paths


@pytest.mark.parametrize(
    ("given", "meant"),
    [("~", "/home/me"), ("~/a b", "/home/me/a b"), ("/a/~", "/a/~"), ("a", "a")],
)
def test_home_stands_for_a_tilde_at_the_beginning(
    monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    assert in_home(Path(given), "--state-dir") == Path(meant)


def test_home_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        in_home(Path("~no-such-user/x"), "--state-dir")

    assert str(caught.value) == (
        "cannot use --state-dir ~no-such-user/x: there is no such user, or no home; "
        "give the whole path"
    )


def test_state_folder_in_the_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "~no-such-user")

    with pytest.raises(ConfigurationError, match=r"cannot use the XDG state folder"):
        default_state_dir()


@pytest.mark.parametrize(
    ("memory", "cpus", "gpus"),
    [
        ("8g", "2", "all"),
        ("512m", "0.5", "0,1"),
        ("1.5GiB", "1e0", "GPU-8a3f:0"),
        (None, None, None),
    ],
)
def test_limits_that_engines_take(memory: str | None, cpus: str | None, gpus: str | None) -> None:
    assert check_limits(memory, cpus, gpus) == Limits(memory, cpus, gpus)


@pytest.mark.parametrize("memory", ["lots", "-1g", "0", "0G", "8 gigs", "", "8g --privileged"])
def test_memory_that_no_engine_takes_is_refused_at_the_start(memory: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use --memory .* such as 8g"):
        check_limits(memory, None, None)


@pytest.mark.parametrize("cpus", ["two", "0", "-1", "nan", "inf", ""])
def test_cpus_that_no_engine_takes_are_refused_at_the_start(cpus: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use --cpus .* such as 2"):
        check_limits(None, cpus, None)


@pytest.mark.parametrize("gpus", ["", "0,,1", "0 1", "all,", "0;rm"])
def test_gpus_that_no_engine_takes_are_refused_at_the_start(gpus: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use --gpus .* give all"):
        check_limits(None, None, gpus)


def test_home_that_no_engine_can_mount_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use --victoria-home /a:b: .* colon"):
        check_mountable(Path("/a:b"), "--victoria-home")
