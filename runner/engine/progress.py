"""How much of an image is downloaded, as podman and docker show it on a terminal.

podman: `Copying blob 31e352740f53 [=>-----] 1.2MiB / 3.2MiB`, and `done` in place of the bytes.
docker: `31e352740f53: Downloading [=>    ]  1.2MB/3.2MB`, then `Extracting` and `Pull complete`.
Without a terminal podman names only the layers that it begins, and docker only those that it ends.
"""

from __future__ import annotations

import re

_LAYER = re.compile(
    r"(?:Copying \w+ (?:sha256:)?|\b)(?P<layer>[0-9a-f]{12,64})(?P<state>[ :][^\r\n\x1b]*)"
)
_BYTES = re.compile(r"([\d.]+)\s?([kKMGT]?)(i?)[Bb]\s?/\s?([\d.]+)\s?([kKMGT]?)(i?)[Bb]")
_DOWNLOADED = re.compile(r"\bdone\b|[Dd]ownload complete|Verifying|Extracting|Pull complete")
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")
_MAX_CHARS = 1 << 16


class PullProgress:
    """What the terminal of one pull has shown so far."""

    def __init__(self) -> None:
        self.changes = 0
        """How often a layer was shown in another state: constant while nothing is received."""
        self._layers: dict[str, tuple[float, float]] = {}
        """By layer, the bytes that are downloaded, and its size."""
        self._states: dict[str, str] = {}
        self._unread = ""
        self._shown = ""

    def feed(self, text: str) -> None:
        """Read what the terminal shows next."""
        self._shown = (self._shown + text)[-_MAX_CHARS:]
        text = self._unread + text
        # What follows the last end of a line may not be complete; docker ends its lines with \r.
        whole = max(text.rfind("\r"), text.rfind("\n")) + 1
        for match in _LAYER.finditer(text, 0, whole):
            self._note(match["layer"][:12], match["state"].strip())
        self._unread = text[whole:][-_MAX_CHARS:]

    def _note(self, layer: str, state: str) -> None:
        amounts = _BYTES.search(state)
        # Without the speed, which podman goes on showing while nothing is received.
        shown = state.partition("[")[0] + (amounts[0] if amounts else "")
        if self._states.get(layer) == shown:
            return
        self._states[layer] = shown
        self.changes += 1
        if _DOWNLOADED.search(state):
            _, size = self._layers.get(layer, (0.0, 0.0))
            self._layers[layer] = size, size
        elif amounts is not None:
            self._layers[layer] = _to_bytes(*amounts.groups()[:3]), _to_bytes(*amounts.groups()[3:])

    @property
    def summary(self) -> str:
        """How much is downloaded, for people."""
        done = sum(done for done, _ in self._layers.values()) / (1 << 20)
        size = sum(size for _, size in self._layers.values()) / (1 << 20)
        return f"{done:.1f} of {size:.1f} MiB" if size else "nothing yet"

    @property
    def text(self) -> str:
        """The last of what was shown, without what moves the cursor of a terminal."""
        return _SEQUENCE.sub("", self._shown).replace("\r", "\n")


def _to_bytes(number: str, unit: str, is_binary: str) -> float:
    power = " KMGT".index(unit.upper() or " ")
    return float(number) * (1024.0 if is_binary else 1000.0) ** power
