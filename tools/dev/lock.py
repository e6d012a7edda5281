"""Write requirements-runner.txt: what the runner needs on a host, with the hash of each file.

The versions are those of constraints.txt, which the tests run with; the hashes are the index's.
"""

from tools.dev.environments import ensure_uv
from tools.dev.shell import ROOT, run, say

HASHED = ROOT / "requirements-runner.txt"
HEADER = """\
# What the runner needs, with the hash of each file, for pip install --require-hashes.
# Made with: ./dev lock
"""


def write_hashes() -> int:
    """Resolve the runner's dependencies for every Python that it runs on; return the exit code."""
    result = run(
        [
            *(str(ensure_uv()), "pip", "compile", "--quiet", "--universal"),
            *("--python-version", "3.10", "--generate-hashes", "--no-header", "--no-annotate"),
            *("--constraint", str(ROOT / "constraints.txt"), str(ROOT / "pyproject.toml")),
        ],
        error="cannot resolve the dependencies: see uv's message above; is PyPI reachable?",
    )
    HASHED.write_text(f"{HEADER}{result.output}")
    say(f"wrote {HASHED.name}")
    return 0
