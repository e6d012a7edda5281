"""Tests of the runner and the reference orchestrator, and what sets up the machine for them."""
