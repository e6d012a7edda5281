"""Checks any orchestrator against the contract, from outside, as its nodes and its admin."""
