"""Which images of this host are old: a tag that moves leaves the image behind that had it before.

An image is removed only if this runner has run it, and no container uses it and nobody has tagged
it: the engine may keep images of others too, so it is never asked to prune.
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.engine.base import Engine

KEPT_IMAGES = 2
"""The newest, and the one before it, which an operator may want to go back to."""


async def old_images(engine: Engine, ran: Sequence[str]) -> list[str]:
    """Return the ids of the images that can be removed if no container uses them.

    `ran` has the ids of those that this runner has run under one name, newest first.

    Raises:
        EngineError: the engine does not list its images.
    """
    is_tagged = await engine.images()
    here = [image_id for image_id in ran if image_id in is_tagged]
    return [image_id for image_id in here[KEPT_IMAGES:] if not is_tagged[image_id]]
