"""The agent's session in Crush's database: it is not trusted, and read in a child process."""
