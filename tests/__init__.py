"""Tests of the runner and the reference orchestrator."""
