"""What must not be forgotten, in SQLite: written before the world is changed."""
