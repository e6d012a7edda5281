"""Starting an engine's programs, which forks while other threads work."""

import subprocess
import sys

FORK_WHILE_THE_FIRST_EXECUTOR_STARTS = """
import asyncio, os, sys, threading
import runner.engine.call
forks, works = threading.Event(), threading.Event()
os.register_at_fork(before=lambda: (forks.set(), works.wait(20)))
child = threading.Thread(target=lambda: os.fork() or os._exit(0))
child.start()
forks.wait(20)
async def look_up():
    await asyncio.get_running_loop().run_in_executor(None, works.set)
asyncio.run(look_up())
child.join()
"""


def test_program_may_be_started_while_the_first_address_is_looked_up() -> None:
    # A lock that the first executor brought along was released by a fork that had not taken it.
    # The runner ended with that, as it started.
    command = (sys.executable, "-W", "ignore", "-c", FORK_WHILE_THE_FIRST_EXECUTOR_STARTS)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
