"""Images that a moving tag leaves behind are removed, and no other."""

import shutil

import pytest

from runner.errors import EngineError
from tests.harness.host import IMAGE, Host
from tests.loops.steps import Log, start_container

pytestmark = pytest.mark.anyio

LEFT_BYTES = 5 << 30
"""Above the reserve: less than an image may take."""


async def run_each(host: Host, *image_ids: str) -> list[str]:
    """Run a task on each image, which gets the tag then; return the images that there are then."""
    for image_id in image_ids:
        host.engine.move_tag(image_id)
        host.orchestrator.offer(f"of-{image_id}")
        min_free_disk = max(0, shutil.disk_usage(host.folder).free - LEFT_BYTES)
        async with host.runner(once=True, min_free_disk=min_free_disk) as life:
            assert await life.end() == 0
        assert host.starts_of(f"of-{image_id}") == 1
    return list(host.engine.image_tags)


async def test_near_the_reserve_old_images_that_were_run_are_removed_but_not_those_of_others(
    host: Host, log: Log
) -> None:
    host.engine.storage = host.folder / "of-another-host"
    images = ["image-1", "tagged", "used", "old", "5"]
    assert await run_each(host, *images[1:]) == images
    assert not host.engine.called["images"], "it is not a disk of this host"
    rows = host.rows("SELECT name, image_id, engine FROM images ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [(IMAGE, i, "podman") for i in images[1:]]

    host.engine.storage = host.folder
    host.engine.image_id = "used"
    await start_container(host, "of-somebody")
    host.engine.image_id = "5"
    host.engine.break_("remove_image", EngineError("cannot remove the image old: no"))
    host.engine.image_tags["tagged"] = True
    assert await run_each(host, "6") == [*images, "6"]
    assert "cannot remove old images: cannot remove the image old: no" in log.messages

    host.engine.mend()
    assert await run_each(host, "7") == ["image-1", "tagged", "used", "5", "6", "7"]
    assert log.messages.count("old image removed") == 1
