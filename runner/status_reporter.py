"""`python -m runner.status_reporter`: images have this name in their MCP configuration."""

import sys

from runner.reporter.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
