"""Keys and their hashes, rates of calls, and what a process remembers of callers."""

import base64
import hashlib
import hmac
import re
import secrets
import threading
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.errors import TooMany
from orchestrator.model import NodeIdentity

ADMIN_KEY_MARK = "va_"
SCOPED_KEY_MARK = "vk_"
NODE_KEY_MARK = "vn_"
TOKEN_MARK = "vr_"  # noqa: S105 - a prefix, not a secret
"""The prefixes of generated keys and tokens, by which secret scanners find one that leaked."""

PREFIX_LENGTH = 8
"""How much of a scoped key or a registration token is stored and shown."""

UNGUESSABLE_LENGTH = 24
"""Characters. Nobody guesses a secret this long, so nothing need slow the attempt down."""


def new_secret(mark: str) -> str:
    """Return a new secret that fits a header and a shell variable."""
    return mark + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Return the hash that is stored of a key. Keys are random, so a fast hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_same(given: str, expected: str) -> bool:
    """Compare two secrets in constant time, whatever their lengths."""
    return hmac.compare_digest(key_hash(given), key_hash(expected))


_TASK_KEY = re.compile(r"vt_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")


def task_key(secret: bytes, task_id: str, assignment_number: int) -> str:
    """Return the key of a task for one of its assignments. It has the task's id in it."""
    mac = _derived(secret, "task", task_id, assignment_number)
    return f"vt_{uuid.UUID(task_id).hex}_{mac}"


def task_of_key(key: str) -> str | None:
    """Return the id of the task that a key is for; None if it has not the form of such a key."""
    parsed = _TASK_KEY.fullmatch(key)
    return None if parsed is None else str(uuid.UUID(parsed[1]))


def rotated_node_key(secret: bytes, node_id: str, rotation: int) -> str:
    """Return the key that a node gets by its nth rotation."""
    return f"vn_{_derived(secret, 'node', node_id, rotation)}"


def _derived(secret: bytes, kind: str, subject_id: str, number: int) -> str:
    mac = hmac.digest(secret, f"{kind}:{subject_id}:{number}".encode(), "sha256")
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")


_MINUTE = timedelta(minutes=1)

_REMEMBERED = 10_000
"""How many addresses or keys are remembered; the oldest are dropped first."""


def charge(
    paid_until: datetime | None, now: datetime, per_minute: int
) -> tuple[datetime, timedelta | None]:
    """Charge one call to a rate; return the new state, and the wait if the rate is used up.

    A rate is one moment: up to which the calls so far are paid for. Each call moves it on by its
    share of a minute. It may lie a minute ahead at most, so a minute's calls may come at once.
    """
    share = _MINUTE / per_minute
    after = max(paid_until or now, now) + share
    excess = after - now - _MINUTE
    # Shares are rounded to microseconds; that must not cost the last call of a minute.
    if excess > per_minute * timedelta.resolution:
        return paid_until or now, excess
    return after, None


class Throttle:
    """Slows guessing: an address with too many wrong credentials is refused for a while.

    It guards the two secrets that an operator may have chosen, REGISTRATION_TOKEN and the admin
    key, if they are shorter than `UNGUESSABLE_LENGTH`. All other right ones pass, also from an
    address from which others guess. Each process counts for itself.
    """

    def __init__(self, failures_per_minute: int) -> None:
        self._failures_per_minute = failures_per_minute
        self._paid_until: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def check(self, address: str, now: datetime) -> None:
        """Raise TooMany if this address has failed too often lately."""
        with self._lock:
            _, wait = charge(self._paid_until.get(address), now, self._failures_per_minute)
        if wait is not None:
            raise TooMany("too many wrong credentials came from this address", wait)

    def note_failure(self, address: str, now: datetime) -> None:
        """Count one failure."""
        with self._lock:
            paid_until, _ = charge(
                self._paid_until.pop(address, None), now, self._failures_per_minute
            )
            self._paid_until[address] = paid_until
            if len(self._paid_until) > _REMEMBERED:
                self._paid_until.pop(next(iter(self._paid_until)))

    def address_count(self) -> int:
        """Return the number of addresses that are remembered."""
        return len(self._paid_until)


class ProxyWatch:
    """Notices, once, that all callers seem to come through one proxy that is not trusted.

    The sign: two callers or more, all from one address, and one of them sends X-Forwarded-For.
    """

    def __init__(self) -> None:
        self._address: str | None = None
        self._callers: set[str] = set()
        self._is_over = False
        self._lock = threading.Lock()

    def is_suspicious(self, address: str, caller_id: str, *, is_forwarded: bool) -> bool:
        """Return, once at most, whether callers so far look like those behind a proxy."""
        if self._is_over:
            return False
        with self._lock:
            self._is_over = self._is_over or self._address not in {None, address}
            self._address = address
            if len(self._callers) < _SEVERAL:
                self._callers.add(caller_id)
            if self._is_over or not is_forwarded or len(self._callers) < _SEVERAL:
                return False
            self._is_over = True
        return True


_SEVERAL = 2
_NOTED_EVERY = timedelta(minutes=1)


class DenialSampler:
    """Decides which refused calls the audit records: one a minute of each key and cause.

    A revoked key, or one over its rate, may be in a program that calls without end. The audit
    shows it, and the database does not fill up. Each process counts for itself.
    """

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], datetime] = {}
        self._lock = threading.Lock()

    def is_due(self, key_id: str, cause: str, now: datetime) -> bool:
        """Return whether a refusal of this key for this cause is recorded now."""
        alike = (key_id, cause)
        with self._lock:
            last = self._noted.get(alike)
            if last is not None and now - last < _NOTED_EVERY:
                return False
            self._noted.pop(alike, None)
            self._noted[alike] = now
            if len(self._noted) > _REMEMBERED:
                self._noted.pop(next(iter(self._noted)))
        return True


_MAX_NODES = 200_000


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A node as it last registered."""

    identity: NodeIdentity
    view: bytes
    """What responses show of it, without what a heartbeat changes: JSON without its last brace."""
    key_hash: str
    new_api_key: str | None = None
    """The key that it should use from now on."""

    @property
    def id(self) -> str:
        """The node's id."""
        return self.identity.id


class NodeCache:
    """Nodes by the hash of their key, so that they are not looked up for each request.

    A node that is removed or registers again, at whichever process, is dropped here within a
    second. In between its calls are answered as before.
    """

    def __init__(self) -> None:
        self._by_hash: dict[str, KnownNode] = {}
        self._hash_of: dict[str, str] = {}
        self.version = 0
        """Changes when entries are dropped."""

    def find(self, hash_of_key: str) -> KnownNode | None:
        """Return the node of this key if it has called before."""
        return self._by_hash.get(hash_of_key)

    def keep(self, hash_of_key: str, node: KnownNode, version: int) -> None:
        """Store a node that was looked up at that version, unless it may have changed since."""
        if version != self.version:
            return
        if len(self._by_hash) >= _MAX_NODES:
            self.clear()
        # A node whose key was rotated has one entry at a time, which `forget` finds.
        previous = self._hash_of.get(node.id, hash_of_key)
        if previous != hash_of_key:
            self._by_hash.pop(previous, None)
        self._by_hash[hash_of_key] = node
        self._hash_of[node.id] = hash_of_key

    def forget(self, node_id: str) -> None:
        """Drop a node."""
        self.version += 1
        self._by_hash.pop(self._hash_of.pop(node_id, ""), None)

    def clear(self) -> None:
        """Drop all."""
        self.version += 1
        self._by_hash.clear()
        self._hash_of.clear()
