"""The runner as a whole, in process: only the engine and the clock are fakes."""
