"""The command line for people. It calls any orchestrator over HTTP, and imports none of ours."""
