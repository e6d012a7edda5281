"""The MCP server inside the container, by which an agent reports."""
