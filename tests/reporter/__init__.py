"""The status reporter, as an agent sees it and as the orchestrator does."""
