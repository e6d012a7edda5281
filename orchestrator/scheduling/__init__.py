"""Which node gets which task, and when: claims, leases, long polls, heartbeats."""
