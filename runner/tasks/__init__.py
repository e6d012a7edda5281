"""One task, from its assignment to its final report: it ends once, with its true reason."""
