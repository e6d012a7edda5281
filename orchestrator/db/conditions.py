"""Conditions on names and tags, as the two databases compare them."""

import json
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func
from sqlalchemy.orm import InstrumentedAttribute, Session

_LIKE = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_", "*": "%"})
_GLOB = str.maketrans({"[": "[[]", "?": "[?]"})


def matches_pattern(
    session: Session, column: InstrumentedAttribute[Any], pattern: str
) -> ColumnElement[bool]:
    """Return the condition that a pattern matches a column, as `model.name_matches` does."""
    # Of both databases' patterns only these are case-sensitive.
    if _is_sqlite(session):
        return column.op("GLOB", is_comparison=True)(pattern.translate(_GLOB))
    return column.like(pattern.translate(_LIKE), escape="\\")


def has_tag(
    session: Session, column: InstrumentedAttribute[Any], key: str, value: str
) -> ColumnElement[bool]:
    """Return the condition that a column of tags has this one."""
    # As rows, since a path to a key would have to be quoted.
    each = func.json_each if _is_sqlite(session) else func.json_each_text
    pairs = each(column).table_valued("key", "value")
    is_tag = exists().select_from(pairs).where(pairs.c.key == key, pairs.c.value == value)
    if not _is_sqlite(session):
        return is_tag
    # Nearly all rows are told apart by their text, several times faster.
    stored = f"{json.dumps(key)}: {json.dumps(value)}"
    return and_(func.instr(column, stored) > 0, is_tag)


def contains_text(
    session: Session, column: InstrumentedAttribute[str], text: str
) -> ColumnElement[bool]:
    """Return the condition that a column has this text, in upper or lower case."""
    if _is_sqlite(session):
        # Its LIKE makes no difference between them; to write both in one case takes twice as long.
        return column.contains(text, autoescape=True)
    return column.icontains(text, autoescape=True)


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
