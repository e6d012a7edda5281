"""`python -m runner.reporter`."""

import sys

try:
    from runner.reporter.server import main as main  # noqa: PLC0414 - status_reporter has it from here
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "mcp":
        raise
    sys.exit(
        "victoria-status-reporter: cannot start without the package mcp: "
        "install 'victoria-runner[reporter]' in this environment"
    )

if __name__ == "__main__":
    sys.exit(main())
