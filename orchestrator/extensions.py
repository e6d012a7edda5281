"""The extensions of the contract that this server offers.

The answers to registrations and heartbeats name them; a node uses only what is named.
"""

EXTENSIONS = ("reregister",)
"""`reregister`: a node that registers with its key beside the token stays the same node."""
