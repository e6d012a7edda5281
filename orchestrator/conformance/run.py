"""`python -m orchestrator check URL`: a line for each rule, and whether it holds there."""

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import groupby
from typing import NoReturn

import click
import httpx

from orchestrator.conformance.admin_rules import ADMIN_RULES
from orchestrator.conformance.artifact_rules import ARTIFACT_RULES
from orchestrator.conformance.expect import Absent, Broken, Skipped, Stopped
from orchestrator.conformance.key_rules import KEY_RULES
from orchestrator.conformance.node_rules import NODE_RULES
from orchestrator.conformance.output_rules import OUTPUT_RULES
from orchestrator.conformance.people_rules import PEOPLE_RULES
from orchestrator.conformance.runner_rules import RUNNER_RULES
from orchestrator.conformance.target import Rule, RunnerTarget, Target, is_sendable
from orchestrator.conformance.task_key_rules import TASK_KEY_RULES
from orchestrator.conformance.task_rules import TASK_RULES

PROFILES: dict[str, dict[str, tuple[Rule, ...]]] = {
    "full": {
        **NODE_RULES,
        **TASK_KEY_RULES,
        **OUTPUT_RULES,
        **ARTIFACT_RULES,
        **TASK_RULES,
        **ADMIN_RULES,
        **KEY_RULES,
        **PEOPLE_RULES,
    },
    "runner": RUNNER_RULES,
}
"""The rules of each profile, by what they are about."""

_EXIT_BROKEN = 1
_EXIT_INTERRUPTED = 130


class Verdict(str, Enum):
    """What came of a rule."""

    HOLDS = "holds"
    BROKEN = "broken"
    ABSENT = "absent"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """A rule with its verdict, as `--json` shows it."""

    rule: str
    """The function's name."""
    group: str
    claim: str
    verdict: Verdict
    reason: str = ""


def check_all(target: Target, profile: str = "full") -> Iterator[Finding]:
    """Try every rule of a profile. Raises Stopped."""
    for group, rules in PROFILES[profile].items():
        for rule in rules:
            yield try_rule(rule, target, group)


def try_rule(rule: Rule, target: Target, group: str = "") -> Finding:
    """Try one rule. Raises Stopped."""
    verdict, reason = Verdict.HOLDS, ""
    try:
        rule(target)
    except Broken as error:
        verdict, reason = Verdict.BROKEN, str(error)
    except Absent as error:
        verdict, reason = Verdict.ABSENT, str(error)
    except Skipped as error:
        verdict, reason = Verdict.SKIPPED, str(error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        verdict, reason = Verdict.BROKEN, f"there is no response: {error}"
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Any body may come back; the check goes on.
        verdict, reason = Verdict.BROKEN, f"a response does not follow the contract: {error!r}"
    return Finding(rule.__name__, group, str(rule.__doc__).rstrip("."), verdict, reason)


def _sendable(
    _context: click.Context, _option: click.Parameter, credential: str | None
) -> str | None:
    if credential is not None and not is_sendable(credential):
        raise click.BadParameter("it has characters that no header can carry")
    return credential


@click.command(name="check", short_help="Check an orchestrator against the contract.")
@click.argument("url")
@click.option(
    "--profile",
    type=click.Choice(sorted(PROFILES)),
    default="full",
    help="full: the whole contract. runner: the six calls that a runner makes.",
)
@click.option(
    "--registration-token",
    callback=_sendable,
    envvar="REGISTRATION_TOKEN",
    required=True,
    help="Token with which nodes register. Set it by REGISTRATION_TOKEN to keep it off the command"
    " line.",
)
@click.option(
    "--admin-key",
    callback=_sendable,
    envvar="ADMIN_API_KEY",
    help="The admin key. Set it by ADMIN_API_KEY to keep it off the command line. The profile"
    " runner uses it only to remove its nodes.",
)
@click.option(
    "--take-task",
    is_flag=True,
    help="With --profile runner: take the one task that is queued, report on it, and end it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines.")
def check(  # noqa: PLR0913 - click passes every option as an argument
    url: str,
    *,
    profile: str,
    registration_token: str,
    admin_key: str | None,
    take_task: bool,
    as_json: bool,
) -> None:
    """Check the orchestrator at URL against the contract; it need not be this one.

    The check registers nodes, and creates keys and tasks for these nodes only. At the end, also
    after Ctrl-C, it removes its nodes and keys and cancels its tasks. It leaves the tasks of others
    alone. Exit codes: 0 if no rule is broken, 1 if one is, 69 if the orchestrator cannot be
    reached, 78 if it refuses a credential.
    """
    if profile == "full" and admin_key is None:
        raise click.UsageError("--profile full needs --admin-key (or ADMIN_API_KEY)")
    if profile == "full" and take_task:
        raise click.UsageError("--take-task needs --profile runner")
    target = (
        Target(url, registration_token, admin_key)
        if profile == "full"
        else RunnerTarget(url, registration_token, admin_key, take_task=take_task)
    )
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with target:
            target.check_credentials()
            findings = check_all(target, profile)
            tried = list(findings if as_json else _shown(findings))
    except Stopped as error:
        _stop(str(error), target, error.exit_code)
    except KeyboardInterrupt:
        _stop("interrupted", target, _EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, previous)
    counts = Counter(finding.verdict for finding in tried)
    totals = {verdict.value: counts[verdict] for verdict in Verdict}
    if as_json:
        rules = [asdict(finding) for finding in tried]
        document = {"url": url, "profile": profile, "rules": rules, "totals": totals}
        document["left_behind"] = target.left_behind
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo("\n" + ", ".join(f"{count} {verdict}" for verdict, count in totals.items()))
        _warn_of_what_is_left(target)
    sys.exit(_EXIT_BROKEN if counts[Verdict.BROKEN] else 0)


def _stop(sentence: str, target: Target, exit_code: int) -> NoReturn:
    click.echo(f"Error: {sentence}", err=True)
    _warn_of_what_is_left(target)
    sys.exit(exit_code)


def _warn_of_what_is_left(target: Target) -> None:
    if target.left_behind:
        click.echo(f"Warning: left on the orchestrator: {', '.join(target.left_behind)}", err=True)


def _shown(findings: Iterator[Finding]) -> Iterator[Finding]:
    for group, members in groupby(findings, lambda finding: finding.group):
        click.echo(group)
        for finding in members:
            verdict = finding.verdict.value
            shown = verdict.upper() if finding.verdict is Verdict.BROKEN else verdict
            click.echo(f"  {shown:9}{finding.claim}")
            if finding.reason:
                click.echo(f"           {finding.reason}")
            yield finding
