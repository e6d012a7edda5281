"""Rules about scoped keys: what they may do, how they are limited, and how they end."""

import httpx

from orchestrator.conformance.site import (
    Broken,
    Json,
    Rule,
    Site,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    unique,
)

_KEY = (
    "key_id",
    "name",
    "key_prefix",
    "allowed_node_patterns",
    "permissions",
    "rate_limit",
    "created_at",
    "rotated_at",
    "expires_at",
    "enabled",
    "description",
)
_CALLS_AROUND_A_MINUTE = 3
"""With one call a minute so many at once must be too many, even where a new minute begins."""


def scoped_key(site: Site) -> None:
    """A scoped key creates tasks for the nodes that it may target, until it is revoked."""
    mark = unique("scope")
    key = site.create_key(allowed_node_patterns=[f"{mark}-*"])
    holder = site.client(key["api_key"])
    site.create_task(holder, target_node_name=f"{mark}-1")
    beyond = site.try_to_create(holder, target_node_name=unique("other"))
    expect_refusal("a target outside its patterns", beyond, 403)
    if key["api_key"] in site.admin.get("/keys").text:
        raise Broken("the list of keys shows the key itself")
    fields_of(site.admin.post(f"/keys/{key['key_id']}/revoke"))
    if _shown(site, key).get("enabled") is not False:
        raise Broken("the revoked key is still shown as enabled")
    _expect_ended("a call with the revoked key", site, holder)


def key_fields(site: Site) -> None:
    """A key has all its fields, with what it was made with in them, and is shown once."""
    limits: Json = {"rate_limit": 7, "allowed_node_patterns": [unique("scope")]}
    key = site.create_key(expires_in_days=1, **limits)
    for what, found in (("the new key", key), ("the key as it is shown", _shown(site, key))):
        expect_fields(what, found, *_KEY)
        for name, value in {**limits, "enabled": True}.items():
            expect_equal(f"{name} of {what}", found[name], value)
        if not found["expires_at"]:
            raise Broken(f"{what} never expires")
    if "api_key" in _shown(site, key):
        raise Broken("the key is shown again")


def rate_limit(site: Site) -> None:
    """A call over the key's rate is refused with 429 and Retry-After."""
    holder = site.client(site.create_key(rate_limit=1)["api_key"])
    for _ in range(_CALLS_AROUND_A_MINUTE):
        response = site.try_to_create(holder, target_node_name=unique("rate"))
        if response.is_error:
            break
    expect_refusal("it", response, 429)
    if not response.headers.get("Retry-After", "").isdigit():
        raise Broken("Retry-After does not say in how many seconds to try again")


def rotation(site: Site) -> None:
    """A rotated key works beside the new one for the grace period, and ends if there is none."""
    key = site.create_key()
    second = _rotate(site, key, grace_period_hours=1)
    for secret in (key["api_key"], second):
        site.create_task(site.client(secret), target_node_name=unique("rotated"))
    third = _rotate(site, key, grace_period_hours=0)
    _expect_ended("a call with the key that was rotated without grace", site, site.client(second))
    site.create_task(site.client(third), target_node_name=unique("rotated"))


def key_deletion(site: Site) -> None:
    """A deleted key is gone, and is refused with 401."""
    key = site.create_key()
    answer = fields_of(site.admin.delete(f"/keys/{key['key_id']}"), "deleted", "key_id")
    expect_equal("the answer's key_id", answer["key_id"], key["key_id"])
    expect_refusal("showing it", site.admin.get(f"/keys/{key['key_id']}"), 404)
    response = site.client(key["api_key"]).post("/tasks", json={"prompt": "conformance check"})
    expect_refusal("a call with it", response, 401)


def audit(site: Site) -> None:
    """The audit has what a key was used for, and not the key."""
    key = site.create_key()
    site.create_task(site.client(key["api_key"]), target_node_name=unique("audit"))
    response = site.admin.get("/keys/audit", params={"key_id": key["key_id"]})
    if not fields_of(response, "entries", "total")["entries"]:
        raise Broken("it has no entry for a key that was just used")
    if key["api_key"] in response.text:
        raise Broken("it shows the key itself")


def _shown(site: Site, key: Json) -> Json:
    return fields_of(site.admin.get(f"/keys/{key['key_id']}"))


def _rotate(site: Site, key: Json, *, grace_period_hours: int) -> str:
    path, params = f"/keys/{key['key_id']}/rotate", {"grace_period_hours": grace_period_hours}
    answer = fields_of(site.admin.post(path, params=params), "api_key", "grace_period_hours")
    expect_equal("grace_period_hours", answer["grace_period_hours"], grace_period_hours)
    return str(answer["api_key"])


def _expect_ended(what: str, site: Site, holder: httpx.Client) -> None:
    response = site.try_to_create(holder, target_node_name=unique("ended"))
    expect_refusal(what, response, 401, 403)


KEY_RULES: tuple[Rule, ...] = (
    scoped_key,
    key_fields,
    rate_limit,
    rotation,
    key_deletion,
    audit,
)
