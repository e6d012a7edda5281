"""The soak: random tasks under random faults, then an audit that counts what went wrong."""
