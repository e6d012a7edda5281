"""Types of options: tags, times, durations."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Tag(click.ParamType):  # type: ignore[type-arg] # a generic only since click 8.4
    """`KEY=VALUE`, as a pair."""

    name = "KEY=VALUE"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, str]:
        """Return the key and the value."""
        key, mark, text = str(value).partition("=")
        if not key or not mark:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


class Moment(click.ParamType):  # type: ignore[type-arg] # a generic only since click 8.4
    """A date, or a date and a time, in ISO 8601; in the local zone if it names none."""

    name = "TIME"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """Return the time with its zone."""
        if isinstance(value, datetime):
            return value
        try:
            # Python 3.10 does not read the Z.
            moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", str(value).strip()))
            return moment.astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time such as 2026-01-31T09:30", param, ctx)


class Duration(click.ParamType):  # type: ignore[type-arg] # a generic only since click 8.4
    """Seconds, or a number with `s`, `m`, `h` or `d`."""

    name = "DURATION"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return seconds."""
        read = re.fullmatch(r"(\d{1,9})([smhd]?)", str(value).strip())
        if read is None:
            self.fail(f"{value!r} is not a duration such as 90, 45m or 2h", param, ctx)
        return int(read[1]) * _UNITS[read[2] or "s"]
