"""The whole system: runner processes, real engines, an orchestrator on a real socket."""
