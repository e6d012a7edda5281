"""The agent's session in Crush's database: nothing in it is trusted."""
