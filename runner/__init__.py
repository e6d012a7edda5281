"""The Remote Runner for Victoria Terminal: a host agent that runs an orchestrator's tasks."""

__version__ = "0.1.0"
