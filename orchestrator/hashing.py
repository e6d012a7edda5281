"""Secrets: made, hashed for keeping, and compared in constant time."""

import hashlib
import hmac
import secrets


def new_secret() -> str:
    """Make a secret that fits a header and a shell variable."""
    return secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Give what is stored of a key. Keys are random, so a fast hash does."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_same(given: str, expected: str) -> bool:
    """Compare two secrets in a time that tells nothing, not even of their lengths."""
    return hmac.compare_digest(key_hash(given), key_hash(expected))
