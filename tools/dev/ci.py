"""Run what CI runs: every step, whatever the ones before found, then one line on each."""

import sys
import time

from tools.dev.shell import INTERRUPTED, SKIPPED, run_in_foreground, say

STEPS = (
    ("test",),
    ("test", "--long"),
    ("soak", "--tasks=300", "--seed=1"),
    ("test", "--python", "3.10"),
    ("test", "--python", "3.14"),
    ("rollout",),
)
"""Commands of ./dev; together at most 40 minutes on two cores."""


def run(steps: tuple[tuple[str, ...], ...] = STEPS) -> int:
    """Run each step in a process of its own; return the worst exit code."""
    codes = []
    lines = []
    for step in steps:
        say(f"CI: ./dev {' '.join(step)}")
        began = time.monotonic()
        code = run_in_foreground([sys.executable, "-m", "tools.dev", *step])
        words = {0: "ok", SKIPPED: "skipped, see above"}
        lines.append(
            f"{time.monotonic() - began:6.0f} s  ./dev {' '.join(step)}: "
            f"{words.get(code, f'failed, exit code {code}')}"
        )
        codes.append(0 if code == SKIPPED else code)
        if code >= INTERRUPTED:
            break
    for line in lines:
        say(line)
    return max(codes)
