"""`python -m orchestrator` is `victoria-orchestrator`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main("python -m orchestrator")
