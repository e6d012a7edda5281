"""What lets a runner work, and go on: units, logins, and what the role makes of doctor."""

import base64
import itertools
import json
from collections import ChainMap
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.nativetypes import NativeEnvironment

ROLE = Path(__file__).resolve().parents[2] / "ansible" / "roles" / "victoria_runner"
NAMES = {
    "__victoria_runner_unit": "victoria-runner.service",
    "__victoria_runner_drop_in": "/run/systemd/system/victoria-runner.service.d",
    "__victoria_runner_command": "/usr/local/bin/victoria-runner",
    "__victoria_runner_engine_unit": "user@1001.service",
    "victoria_runner_cleanup_days": 30,
}


def rendered(name: str, **values: object) -> str:
    jinja = jinja2.Environment(trim_blocks=True, autoescape=False)  # noqa: S701 - not HTML
    jinja.filters["b64encode"] = lambda text: base64.b64encode(text.encode()).decode()
    jinja.filters["to_json"] = json.dumps
    jinja.filters["combine"] = lambda *parts: dict(ChainMap(*reversed(parts)))
    text = (ROLE / "templates" / f"{name}.j2").read_text(encoding="utf-8")
    return jinja.from_string(text).render(**values)


def test_runner_is_started_with_its_engine_unless_it_is_drained_or_disabled() -> None:
    lines = rendered("victoria-runner-return.service", **NAMES).splitlines()
    for line in (
        "WantedBy=user@1001.service",
        "ConditionPathExists=!/run/systemd/system/victoria-runner.service.d/drain.conf",
        "ExecCondition=/usr/bin/systemctl --quiet is-enabled victoria-runner.service",
        # A start that waits would deadlock within the engine's own start.
        "ExecStart=/usr/bin/systemctl --no-block start victoria-runner.service",
    ):
        assert line in lines


def test_cleanup_is_the_command_for_operators_which_has_the_services_user_and_settings() -> None:
    service = rendered("victoria-runner-cleanup.service", **NAMES)
    assert "ExecStart=/usr/local/bin/victoria-runner cleanup --older-than=30" in service
    timer = rendered("victoria-runner-cleanup.timer", **NAMES)
    assert "RandomizedDelaySec=" in timer
    assert "WantedBy=timers.target" in timer


def test_logins_have_the_form_that_podman_and_docker_read() -> None:
    logins = {"registry.example:5000": {"username": "ops", "password": 'a"b\\c:d'}}
    written = json.loads(rendered("registry-logins.json", victoria_runner_registry_logins=logins))
    entry = written["auths"].pop("registry.example:5000")
    assert written == {"auths": {}}
    assert base64.b64decode(entry["auth"]).decode() == 'ops:a"b\\c:d'


def test_what_has_secrets_is_written_without_a_diff() -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "registry.yml").read_text(encoding="utf-8"))
    (writing,) = [task for task in tasks if "ansible.builtin.template" in task]
    assert (writing["no_log"], writing["diff"]) == (True, False)
    assert writing["ansible.builtin.template"]["mode"] == "0600"


def examined(*checks: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what the role makes of doctor's checks."""
    expressions = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    jinja = NativeEnvironment()
    jinja.filters["product"] = itertools.product
    jinja.filters["combine"] = lambda pair: {**pair[0], **pair[1]}
    jinja.filters["difference"] = lambda these, others: sorted({*these} - {*others})
    values: dict[str, Any] = {"__victoria_runner_doctor_says": {"checks": list(checks)}}
    for name in ("checks", "failed_checks", "blocking", "hints"):
        expression = expressions[f"__victoria_runner_{name}"].strip()
        values[f"__victoria_runner_{name}"] = jinja.from_string(expression).render(**values)
    return {name.removeprefix("__victoria_runner_"): made for name, made in values.items()}


def check(what: str, **facts: bool) -> dict[str, Any]:
    return {"what": what, "ok": True, "warning": False, "sentence": f"of {what}", **facts}


def test_history_is_shown_and_does_not_fail_a_play() -> None:
    parked = check("outbox", warning=True, blocking=False)
    open_to_others = check("identity file", ok=False, blocking=False)
    made = examined(parked, open_to_others, check("root", warning=True), check("engine"))
    assert made["blocking"] == []
    assert made["hints"] == ["of outbox", "of identity file"]


def test_what_keeps_tasks_away_fails_a_play_also_as_an_older_doctor_reports_it() -> None:
    made = examined(check("image", ok=False, blocking=True), check("clock", ok=False))
    assert [one["what"] for one in made["blocking"]] == ["image", "clock"]
    assert made["hints"] == []


def test_variables_of_the_service_are_written_beside_those_of_the_engine() -> None:
    expressions = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    jinja = NativeEnvironment()
    jinja.filters["combine"] = lambda *parts: dict(ChainMap(*reversed(parts)))
    expression = expressions["__victoria_runner_secret_variables"].strip()
    secrets = jinja.from_string(expression).render(
        __victoria_runner_has_secret_proxy=False,
        victoria_runner_environment={"PATH": '/opt/helpers:/usr/bin"'},
        victoria_runner_engine_env={"AWS_PROFILE": "runner"},
    )
    written = rendered("secrets.env", __victoria_runner_secret_variables=secrets)
    lines = [line for line in written.splitlines() if "=" in line and not line.startswith("#")]
    assert lines == ['AWS_PROFILE="runner"', 'PATH="/opt/helpers:/usr/bin\\""']


def tasks_of(name: str) -> list[str]:
    path = ROLE / "tasks" / f"{name}.yml"
    return [json.dumps(task) for task in yaml.safe_load(path.read_text(encoding="utf-8"))]


def test_daemon_that_was_reloaded_is_restarted_once_containers_outlive_that() -> None:
    """After a reload, Docker 28 starts no container with host-gateway, as the runner's have."""
    *_, reloading, waiting, restarting, done = tasks_of("live_restore")
    assert '"reloaded"' in reloading
    assert "{.LiveRestoreEnabled}}" in waiting
    assert '"restarted"' in restarting
    assert "__victoria_runner_docker_restart_mark" in done


def test_restart_that_a_killed_play_owes_is_made_by_the_next_one() -> None:
    """Live-restore is on by then, so that it does not tell."""
    tasks = tasks_of("live_restore")
    mark = "__victoria_runner_docker_restart_mark"
    marked, done = (at for at, text in enumerate(tasks) if mark in text)
    (reloaded,) = [at for at, text in enumerate(tasks) if '"reloaded"' in text]
    assert marked < reloaded < done
    (including,) = [text for text in tasks_of("docker") if '"live_restore.yml"' in text]
    assert "__victoria_runner_seen.docker_restart_is_due" in including


def test_daemon_without_live_restore_is_restarted_only_if_no_container_runs() -> None:
    tasks = tasks_of("no_live_restore")
    (restarting,) = [text for text in tasks if "systemctl" in text]
    assert "try-restart" in restarting
    assert "__victoria_runner_containers.stdout == ''" in restarting
    assert "__victoria_runner_containers.rc == 0" in restarting
    assert tasks.index(restarting) > next(at for at, text in enumerate(tasks) if "absent" in text)
