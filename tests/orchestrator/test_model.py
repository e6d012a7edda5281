"""The model: transitions of a task, targets, and cron expressions."""

from datetime import datetime, timezone

import pytest

from orchestrator import model
from orchestrator.model import NodeIdentity, Target, TaskStatus, matches

FINAL = (TaskStatus.SUCCESS, TaskStatus.ERROR, TaskStatus.CANCELLED)
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
NODE = NodeIdentity("node-1", "client-acme-prod-1", {"env": "production", "gpu": "yes"})


def test_steps_of_a_task() -> None:
    before = {step: {one for one in TaskStatus if one.may_become(step)} for step in TaskStatus}
    for status in TaskStatus:
        assert status.is_final is (status in FINAL)
        assert not set(FINAL) & before[status]
    assert before[TaskStatus.CANCELLED] == set(TaskStatus) - set(FINAL)
    # Only an unstarted one goes back to the queue.
    assert before[TaskStatus.PENDING] == {TaskStatus.ASSIGNED}


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("prod-server-1", "prod-server-1", True),
        ("server-1", "prod-server-1", False),
        ("*", "anything", True),
        ("Prod-*", "prod-server-1", False),
        ("", "prod-server-1", False),
        ("prod-[1]-*", "prod-[1]-a", True),
        ("prod.*", "prod-1", False),
        ("a*b", "a\nb", True),
        ("a*a", "a", False),
        ("*ab*ba*", "aba", False),
        ("*ab*ab*", "abcab", True),
        ("a*b*c", "a-bc-c", True),
        ("**", "", True),
    ],
)
def test_name_is_matched_as_a_wildcard(pattern: str, name: str, *, expected: bool) -> None:
    assert matches(Target(node_name=pattern), NodeIdentity("id", name, {})) is expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(tags={}), True),
        (Target(node_id="node-1"), True),
        (Target(node_id="node-*"), False),
        (Target(tags={"env": "production", "gpu": "yes"}), True),
        (Target(tags={"env": "production", "gpu": "no"}), False),
        (Target(tags={"zone": "eu"}), False),
        (Target(node_name="client-acme-*", tags={"env": "production"}), True),
        (Target(node_name="client-beta-*", tags={"env": "production"}), False),
        (Target(node_id="node-2", node_name="client-acme-*"), False),
    ],
)
def test_every_condition_of_a_target_must_hold(target: Target, *, expected: bool) -> None:
    assert matches(target, NODE) is expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/15 * * * *", "2026-03-29T00:45:00+00:00"),
        # Where clocks in Europe go forward that night: UTC has all its hours.
        ("30 1 * * *", "2026-03-29T01:30:00+00:00"),
        ("0 9 * * mon-fri", "2026-03-30T09:00:00+00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00+00:00"),
        ("@daily", "2026-03-30T00:00:00+00:00"),
        ("@Hourly", "2026-03-29T01:00:00+00:00"),
    ],
)
def test_next_time_is_that_of_cron_in_utc(expression: str, expected: str) -> None:
    following = model.next_time(expression, datetime(2026, 3, 29, 0, 30, 15, tzinfo=timezone.utc))
    assert following is not None
    assert following.isoformat() == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "cannot be read as a cron expression"),
        ("* * * *", "cannot be read as a cron expression"),
        ("60 * * * *", "cannot be read as a cron expression"),
        ("0 0 31 2 *", "cannot be read as a cron expression"),
        ("@reboot", "cannot be read as a cron expression"),
        ("* 17-20 */14 */18 * 1#5", "fires more than once a minute"),
        ("0,30 * * * * *", "fires more than once a minute"),
        ("0 17-20 */14 */18 2 1#5", "never fires"),
    ],
)
def test_bad_cron_expression_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.check_expression(expression, NOW)


@pytest.mark.parametrize("expression", ["* * * * *", "30 * * * * *", "@weekly", "0 0 29 2 *"])
def test_good_cron_expression_is_accepted(expression: str) -> None:
    model.check_expression(expression, NOW)
