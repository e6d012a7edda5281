"""`python -m orchestrator check URL`: a line for each rule, and whether it holds there."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import click
import httpx

from orchestrator.conformance.admin_rules import ADMIN_RULES
from orchestrator.conformance.key_rules import KEY_RULES
from orchestrator.conformance.node_rules import LAST_RULES, NODE_RULES
from orchestrator.conformance.site import Absent, Broken, Rule, Site, is_sendable
from orchestrator.conformance.task_rules import TASK_RULES

_RULES = (*NODE_RULES, *TASK_RULES, *ADMIN_RULES, *KEY_RULES, *LAST_RULES)


class Verdict(str, Enum):
    """What is said of a rule."""

    HOLDS = "holds"
    BROKEN = "BROKEN"
    ABSENT = "absent"


@dataclass(frozen=True)
class Finding:
    """What came of one rule."""

    rule: str
    """The function's name."""
    claim: str
    verdict: Verdict
    reason: str = ""


def check_all(site: Site) -> Iterator[Finding]:
    """Try every rule."""
    for rule in _RULES:
        yield _try(rule, site)


def _sendable(_context: click.Context, _option: click.Parameter, credential: str) -> str:
    if not is_sendable(credential):
        raise click.BadParameter("it has characters that no header can carry")
    return credential


@click.command(name="check")
@click.argument("url")
@click.option(
    "--registration-token",
    callback=_sendable,
    envvar="REGISTRATION_TOKEN",
    required=True,
    help="What a node registers with; from REGISTRATION_TOKEN it stays off the command line.",
)
@click.option(
    "--admin-key",
    callback=_sendable,
    envvar="ADMIN_API_KEY",
    required=True,
    help="The admin key; from ADMIN_API_KEY it stays off the command line.",
)
def check(url: str, registration_token: str, admin_key: str) -> None:
    """Run the contract against the orchestrator at URL, whosever it is.

    It registers nodes of its own, creates keys, and tasks for its nodes alone, and removes them at
    the end. Ends with 1 if anything does not hold.
    """
    counts = dict.fromkeys(Verdict, 0)
    with Site(url, registration_token, admin_key) as site:
        try:
            site.client().get("/health")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            click.echo(f"Error: cannot reach {url}: {error}", err=True)
            sys.exit(69)
        for finding in check_all(site):
            counts[finding.verdict] += 1
            click.echo(f"{finding.verdict.value:8}{finding.claim}")
            if finding.reason:
                click.echo(f"        {finding.reason}")
    told = ", ".join(f"{count} {verdict.value.lower()}" for verdict, count in counts.items())
    click.echo(f"\n{told}")
    sys.exit(1 if counts[Verdict.BROKEN] else 0)


def _try(rule: Rule, site: Site) -> Finding:
    name, claim = rule.__name__, str(rule.__doc__).rstrip(".")
    try:
        rule(site)
    except Broken as error:
        return Finding(name, claim, Verdict.BROKEN, str(error))
    except Absent as error:
        return Finding(name, claim, Verdict.ABSENT, str(error))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(name, claim, Verdict.BROKEN, f"no answer: {error}")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Whatever else an orchestrator may answer, the check itself goes on.
        reason = f"an answer has not the form that it has to have: {error!r}"
        return Finding(name, claim, Verdict.BROKEN, reason)
    return Finding(name, claim, Verdict.HOLDS)
