"""How error answers look, for the handlers to name in the schema that the server shows."""

from typing import Any

from pydantic import BaseModel


class Problem(BaseModel):
    """Every error's body."""

    detail: str


def problems(*status_codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers to FastAPI's schema."""
    return {code: {"model": Problem} for code in status_codes}
