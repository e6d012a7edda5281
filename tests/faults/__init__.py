"""The instruments that break the runner on purpose, and what must hold while they do."""
