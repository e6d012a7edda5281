"""The orchestrator's HTTP API: requests, and their failures by what a caller does about them."""
