"""What runs as long as the runner does: one loop a file."""
