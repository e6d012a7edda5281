"""The reference orchestrator: nodes register here, take tasks from here, and report to here."""

__version__ = "0.1.0"
