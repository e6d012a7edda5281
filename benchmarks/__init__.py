"""What the runner costs, measured beside something that does without it."""
