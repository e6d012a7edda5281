"""Rules about scoped keys and registration tokens: what they may do, and how they end."""

import httpx

from orchestrator.conformance.expect import (
    Broken,
    Json,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
)
from orchestrator.conformance.target import Rule, Target

# Fields without a value may be left out.
_KEY = (
    "key_id",
    "name",
    "key_prefix",
    "allowed_node_patterns",
    "permissions",
    "rate_limit",
    "created_at",
    "expires_at",
    "enabled",
    "description",
)
_CALLS_AROUND_A_MINUTE = 3
"""With one call a minute so many at once must be too many, even where a new minute begins."""


def scoped_key(target: Target) -> None:
    """A scoped key creates tasks for the nodes that it may target, until it is revoked."""
    mark = target.unique("scope")
    key = target.create_key(allowed_node_patterns=[f"{mark}-*"])
    holder = target.client(key["api_key"])
    target.create_task(holder, target_node_name=f"{mark}-1")
    outside = target.try_to_create(holder, target_node_name=target.unique("other"))
    expect_refusal("a target outside its patterns", outside, 403)
    if key["api_key"] in target.admin.get("/keys").text:
        raise Broken("the list of keys shows the key itself")
    fields_of(target.admin.post(f"/keys/{key['key_id']}/revoke"))
    if _get(target, key).get("enabled") is not False:
        raise Broken("the revoked key is still enabled")
    _expect_ended("a call with the revoked key", target, holder)


def key_fields(target: Target) -> None:
    """A key has all its fields, with the values that it was created with, and is shown once."""
    limits: Json = {"rate_limit": 7, "allowed_node_patterns": [target.unique("scope")]}
    key = target.create_key(expires_in_days=1, **limits)
    by_id = _get(target, key)
    for what, view in (("the new key", key), ("the key by its id", by_id)):
        expect_fields(what, view, *_KEY)
        for name, value in {**limits, "enabled": True}.items():
            expect_equal(f"{name} of {what}", view[name], value)
        if not view["expires_at"]:
            raise Broken(f"{what} never expires")
    if "api_key" in by_id:
        raise Broken("the key is shown again")


def rate_limit(target: Target) -> None:
    """A call over the key's rate is refused with 429 and Retry-After."""
    holder = target.client(target.create_key(rate_limit=1)["api_key"])
    for _ in range(_CALLS_AROUND_A_MINUTE):
        response = target.try_to_create(holder, target_node_name=target.unique("rate"))
        if response.is_error:
            break
    expect_refusal("it", response, 429)
    if not response.headers.get("Retry-After", "").isdigit():
        raise Broken("its Retry-After is not a number of seconds")


def rotation(target: Target) -> None:
    """A rotated key works beside the new one for the grace period, and ends if there is none."""
    key = target.create_key()
    second = _rotate(target, key, grace_period_hours=1)
    for secret in (key["api_key"], second):
        target.create_task(target.client(secret), target_node_name=target.unique("rotated"))
    third = _rotate(target, key, grace_period_hours=0)
    _expect_ended(
        "a call with the key that was rotated without grace", target, target.client(second)
    )
    target.create_task(target.client(third), target_node_name=target.unique("rotated"))


def key_deletion(target: Target) -> None:
    """A deleted key is gone, and is refused with 401."""
    key = target.create_key()
    body = fields_of(target.admin.delete(f"/keys/{key['key_id']}"), "deleted", "key_id")
    expect_equal("key_id in the response", body["key_id"], key["key_id"])
    expect_refusal("GET of the deleted key", target.admin.get(f"/keys/{key['key_id']}"), 404)
    response = target.try_to_create(target.client(key["api_key"]))
    expect_refusal("a call with it", response, 401)


def audit(target: Target) -> None:
    """The audit has an entry for each use of a key, and not the key itself."""
    key = target.create_key()
    target.create_task(target.client(key["api_key"]), target_node_name=target.unique("audit"))
    response = target.admin.get("/keys/audit", params={"key_id": key["key_id"]})
    if not fields_of(response, "entries", "total")["entries"]:
        raise Broken("it has no entry for a key that was just used")
    if key["api_key"] in response.text:
        raise Broken("it shows the key itself")


def registration_tokens(target: Target) -> None:
    """Extension: a token for some names registers no other node, and none once it is revoked."""
    mark = target.unique("token")
    token = target.create_token(f"{mark}-*")
    secret = token["token"]
    fields_of(target.try_to_register(secret, f"{mark}-1", {}), "id", "api_key")
    other = target.try_to_register(secret, target.unique("other"), {})
    expect_refusal("a name outside its patterns", other, 403)
    if secret in target.admin.get("/registration-tokens").text:
        raise Broken("the list of tokens shows the token itself")
    fields_of(target.admin.delete(f"/registration-tokens/{token['token_id']}"))
    revoked = target.try_to_register(secret, f"{mark}-2", {})
    expect_refusal("a registration with the revoked token", revoked, 401)


def _get(target: Target, key: Json) -> Json:
    return fields_of(target.admin.get(f"/keys/{key['key_id']}"))


def _rotate(target: Target, key: Json, *, grace_period_hours: int) -> str:
    path, params = f"/keys/{key['key_id']}/rotate", {"grace_period_hours": grace_period_hours}
    body = fields_of(target.admin.post(path, params=params), "api_key", "grace_period_hours")
    expect_equal("grace_period_hours", body["grace_period_hours"], grace_period_hours)
    return str(body["api_key"])


def _expect_ended(what: str, target: Target, holder: httpx.Client) -> None:
    response = target.try_to_create(holder, target_node_name=target.unique("ended"))
    expect_refusal(what, response, 401, 403)


KEY_RULES: dict[str, tuple[Rule, ...]] = {
    "keys": (
        scoped_key,
        key_fields,
        rate_limit,
        rotation,
        key_deletion,
        audit,
        registration_tokens,
    ),
}
