"""The bodies of requests and responses, and the OpenAPI schema made of them."""
