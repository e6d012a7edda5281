#!/usr/bin/python
"""Ansible module: drain the runner's service, or take the drain back.

Arguments:
    unit: name of the service.
    drop_in: folder of its drop-ins in /run, which a reboot removes.
    state: `draining` takes no new task, and the service exits when the running ones have ended;
        `drained` only waits for that; `cancelled` also stops the running tasks, which are reported
        as cancelled; `in_service` starts the service again.
    wait: seconds that this call may wait for the exit, short enough for a connection by ssh: the
        caller calls again until it is `drained`.

Returns:
    drained: whether the service has exited.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

DROP_IN = "[Service]\nRestart=no\n"
"""systemd must not restart the runner after it has drained."""
PAUSE_S = 0.5
START_TIMEOUT_S = 30
"""A runner handles signals once its engine has answered."""


class Failed(Exception):
    """What the operator reads."""


class Service:
    """The runner's service, as systemd has it."""

    def __init__(self, unit: str, drop_in: Path) -> None:
        self.unit = unit
        self.drop_in = drop_in / "drain.conf"

    def properties(self) -> dict[str, str]:
        """Return what systemd shows of it."""
        names = "--property=MainPID,ActiveState,LoadState,NeedDaemonReload"
        lines = systemctl("show", self.unit, names).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def has_exited(self) -> bool:
        """Check that it has no process, and that systemd is not about to start one."""
        return self.properties().get("ActiveState") in {None, "inactive", "failed"}

    def send(self, number: signal.Signals, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Send a signal to the runner, if it has a process, once it handles signals.

        Raises:
            Failed: it does not handle them within this time.
        """
        pid = int(self.properties().get("MainPID") or 0)
        end_s = time.monotonic() + start_timeout_s
        while pid and not handles_signals(pid):
            if time.monotonic() >= end_s:
                raise Failed(f"cannot drain {self.unit}: it is still starting; run this again")
            time.sleep(PAUSE_S)
        if pid:
            # It may have exited meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def forbid_restart(self) -> bool:
        """Write the drop-in; return whether it, or systemd's knowledge of it, was missing."""
        if self.drop_in.exists() and self.properties().get("NeedDaemonReload") != "yes":
            return False
        self.drop_in.parent.mkdir(parents=True, exist_ok=True)
        self.drop_in.write_text(DROP_IN, encoding="ascii")
        systemctl("daemon-reload")
        return True

    def wait(self, wait_s: float) -> bool:
        """Wait until it has exited, up to this long; return whether it has."""
        end_s = time.monotonic() + wait_s
        while not self.has_exited():
            if time.monotonic() >= end_s:
                return False
            time.sleep(PAUSE_S)
        return True


def handles_signals(pid: int) -> bool:
    """Return whether the runner handles its signals, or has exited. Before, they would end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    caught = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return not caught or bool(int(caught[0], 16) & 1 << signal.SIGUSR1 - 1)


def systemctl(*arguments: str) -> str:
    """Run systemctl and return its output."""
    result = subprocess.run(
        ["systemctl", *arguments],
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode != 0:
        cause = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failed(f"cannot {arguments[0]} {' '.join(arguments[1:2])}: {cause}")
    return result.stdout


def drain(service: Service, *, is_check: bool) -> bool:
    """Ask the runner to drain; return whether this is new to it."""
    if service.has_exited():
        return False
    if is_check:
        return not service.drop_in.exists()
    is_new = service.forbid_restart()
    if service.properties().get("MainPID") == "0":
        # It crashed, and systemd is waiting to start it again.
        systemctl("stop", service.unit)
    else:
        service.send(signal.SIGUSR1)
    return is_new


def cancel(service: Service, *, is_check: bool) -> bool:
    """Stop the running tasks; return whether there was a runner."""
    if service.has_exited():
        return False
    if not is_check:
        service.forbid_restart()
        # The first interrupt drains, the second stops the tasks and reports them as cancelled.
        service.send(signal.SIGINT)
        service.wait(1)
        service.send(signal.SIGINT)
    return True


def return_to_service(service: Service, *, is_check: bool) -> bool:
    """Take the drain back and start the service; return whether anything changed."""
    shown = service.properties()
    if shown.get("LoadState") != "loaded":
        raise Failed(f"cannot start {service.unit}: it is not on this host; run site.yml")
    is_drained, has_exited = service.drop_in.exists(), service.has_exited()
    if is_check or not (is_drained or has_exited):
        return is_drained or has_exited
    if is_drained:
        service.drop_in.unlink()
        with suppress(OSError):  # other drop-ins are in it
            service.drop_in.parent.rmdir()
        systemctl("daemon-reload")
    # A runner that is draining takes no task again: it leaves its containers to the next one.
    systemctl("restart" if is_drained else "start", service.unit)
    return True


CHANGES = {"draining": drain, "cancelled": cancel, "in_service": return_to_service}


def main() -> None:
    """Do what Ansible asks for."""
    from ansible.module_utils.basic import AnsibleModule  # only Ansible has it

    module = AnsibleModule(
        {
            "unit": {"type": "str", "required": True},
            "drop_in": {"type": "path", "required": True},
            "state": {"type": "str", "choices": [*CHANGES, "drained"], "required": True},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    service = Service(module.params["unit"], Path(module.params["drop_in"]))
    change = CHANGES.get(module.params["state"])
    try:
        is_changed = change is not None and change(service, is_check=module.check_mode)
        is_drained = service.wait(0 if module.check_mode else module.params["wait"])
    except (Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=is_changed, drained=is_drained)


if __name__ == "__main__":
    main()
