"""Tests of single parts, which need no engine."""
