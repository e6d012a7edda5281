"""What the pages have in common: their templates, and the texts of times and targets."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader
from sqlalchemy import Row

from orchestrator.db.tables import Task

Json = dict[str, Any]


@cache
def pages() -> Environment:
    """Return the templates; values are escaped."""
    return Environment(
        loader=PackageLoader("orchestrator.web", "pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **what: object) -> str:
    """Return a part of a page as HTML."""
    return pages().get_template(f"live/{template}.html").render(**what)


def changed_parts(shown: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parts that differ from those that a page shows."""
    return {name: html for name, html in parts.items() if shown.get(name) != html}


def time_text(moment: datetime) -> str:
    """Return a time for people."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def target_text(node_names: Mapping[str, str], task: Task | Row[Any]) -> str:
    """Return the conditions on a task's node in one line."""
    tags = [f"{key}={value}" for key, value in (task.target_tags or {}).items()]
    node_id = task.target_node_id or ""
    given = [node_names.get(node_id, node_id), task.target_node_name, *tags]
    return ", ".join(one for one in given if one) or "any node"
