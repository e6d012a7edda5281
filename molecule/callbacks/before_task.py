"""Run a command of the scenario just before a task of the play begins, once.

ROLLOUT_BEFORE names the task, ROLLOUT_RUN is the command: `kill -KILL 0` ends the play at once, as
a power cut of the controller does.
"""

import os
import subprocess

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: before_task
type: aggregate
short_description: Run a command before a task
description: For scenarios that interrupt a play.
"""


class CallbackModule(CallbackBase):
    """The callback."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "before_task"

    def v2_playbook_on_task_start(self, task: object, is_conditional: object) -> None:  # noqa: ARG002 - Ansible's signature
        """Run the command before the task that is named."""
        name = os.environ.get("ROLLOUT_BEFORE")
        if name and str(task).endswith(name):
            del os.environ["ROLLOUT_BEFORE"]
            subprocess.run(["/bin/sh", "-c", os.environ["ROLLOUT_RUN"]], check=False)
