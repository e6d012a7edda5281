"""A session of 60,000 messages and 150 MB is submitted with memory by the limit, and soon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.crush.sessions import LOG_LIMIT_BYTES
from tests.fakes.crush import Crush
from tests.reporter.conftest import ROOT, Held

FILL = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
INSERT INTO messages SELECT 'n' || i, 's1', 'user', ?, 'a-model', ?, 0, NULL, NULL FROM n
"""
PARTS = '[{"type": "text", "data": {"text": "' + "🚀 " * 460 + '"}}]'

HAND_IN = """
import os, time, anyio
from pathlib import Path
from runner.api.client import OrchestratorClient
from runner.reporter.job import job_in
from runner.reporter.reporter import Reporter
from runner.timing import ReporterTimings

def peak_kib():
    # Of this program alone; what getrusage says is handed down from its parent.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

async def main():
    job = job_in(os.environ)
    async with OrchestratorClient(job.orchestrator_url) as orchestrator:
        reporter = Reporter(job, orchestrator, ReporterTimings(call_timeout_s=120))
        assert (await reporter.report("running", None, None))["sent"]
        before, began_s = peak_kib(), time.process_time()
        answer = await reporter.hand_in(None)
        print((peak_kib() - before) * 1024, time.process_time() - began_s, answer["sent"])

anyio.run(main)
"""


@pytest.mark.long
def test_large_session_is_submitted_with_memory_by_the_limit(held: Held, crush: Crush) -> None:
    crush.connection.execute("PRAGMA synchronous = OFF")
    crush.connection.execute(FILL, (PARTS, crush.now))
    assert Path(f"{crush.path}-wal").stat().st_size + crush.path.stat().st_size > 150_000_000

    measured = subprocess.run(
        [sys.executable, "-c", HAND_IN],
        cwd=ROOT,
        env={**os.environ, **held.variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert measured.returncode == 0, measured.stderr
    growth, cpu_s, sent = measured.stdout.split()
    assert sent == "True"
    # The text in memory, up to four bytes a character, and the body that is sent.
    assert float(growth) < 3.5 * LOG_LIMIT_BYTES
    assert float(cpu_s) < 5
    messages = held.log["messages"]
    assert len(messages) > 1000
    assert messages[0]["content"].endswith("older messages cut …]")
