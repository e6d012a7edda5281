"""The page for people, in a real browser without a screen."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.orchestrator.browsing import (
    HOSTILE,
    PHONE,
    accessibility_faults,
    button,
    expect_text,
    new_page,
    running_browser,
    sign_in,
)
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, rows

# A text has one rectangle for each of its lines.
COUNT_LINES = """element => { const range = document.createRange();
    range.selectNodeContents(element); return range.getClientRects().length; }"""
TASK_PAGE = re.compile("/dashboard/tasks/[0-9a-f-]{36}$")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(orchestrator: RunningOrchestrator, browser: Browser) -> Iterator[Page]:
    with new_page(browser, orchestrator) as page:
        page.goto(f"{orchestrator.url}/dashboard")
        yield page


@pytest.fixture
def fleet(page: Page, orchestrator: RunningOrchestrator) -> Page:
    _sign_in(page, orchestrator.admin_key)
    expect(page.locator("#nodes-title")).to_be_visible()
    return page


def _sign_in(page: Page, key: str) -> None:
    sign_in(page, "Admin key", key)


def _create_task(page: Page, recurrence: str) -> None:
    page.get_by_label("Repeat").fill(recurrence)
    button(page, "Create task").click()


def test_page_needs_no_key_but_its_data_does(page: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_task("the-prompt")
    expect(page.get_by_label("Admin key")).to_be_focused()
    for key, sentence in (("wrong", "unknown or expired"), ("schlüssel→", "cannot be a key")):
        _sign_in(page, key)
        expect_text(page, "state", sentence)
        expect(page.get_by_label("Admin key")).to_be_focused()
    expect(page.get_by_text("the-prompt")).to_have_count(0)
    _sign_in(page, orchestrator.admin_key)
    expect(page.get_by_text("the-prompt")).to_be_visible()
    button(page, "Sign out").click()
    expect(page.get_by_text("the-prompt")).to_have_count(0)


@pytest.mark.settings(failures_per_minute=2)
def test_throttled_sign_in_is_retried(page: Page) -> None:
    # Each wrong key counts once, though the page has more than one call to make.
    for number in range(2):
        _sign_in(page, f"wrong {number}")
        expect(page.locator("#state")).to_have_text("unknown or expired API key")
        expect(page.locator("#sign-in")).to_be_visible()
    _sign_in(page, "wrong again")
    expect_text(page, "state", "too many wrong credentials")
    expect_text(page, "state", "retrying in")
    expect(page.locator("#content")).to_be_hidden()


@pytest.mark.parametrize(
    ("body", "shown"),
    [('{"detail": "no database"}', "no database"), ("<html>a proxy's page</html>", "status 503")],
    ids=["server", "proxy"],
)
def test_error_of_the_server_or_a_proxy_is_shown_until_it_is_over(
    page: Page, orchestrator: RunningOrchestrator, body: str, shown: str
) -> None:
    page.route("**/dashboard/live*", lambda route: route.fulfill(status=503, body=body))
    _sign_in(page, orchestrator.admin_key)
    expect_text(page, "state", shown)
    page.unroute("**/dashboard/live*")
    expect(page.locator("#nodes-title")).to_be_visible()
    expect(page.locator("#state")).to_have_text("")


def test_outage_is_shown_until_its_end(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.stop()
    expect_text(fleet, "state", "does not answer")
    orchestrator.start()
    orchestrator.register("comes-later")
    expect_text(fleet, "nodes", "comes-later")
    expect(fleet.locator("#state")).to_have_text("")


def test_changes_are_shown_without_reloading(
    fleet: Page, orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    expect_text(fleet, "nodes", "node")
    task_id = orchestrator.assign(node, prompt="count the lines")
    expect_text(fleet, "tasks", "assigned")
    node.report(task_id, "running", message="half of it", progress=50)
    expect_text(fleet, "tasks", "50 %")
    # The task has a page of its own, from which the browser comes back.
    fleet.get_by_role("link", name="count the lines").click()
    expect_text(fleet, "history", "half of it")
    fleet.go_back()
    expect_text(fleet, "tasks", "count the lines")


def test_node_is_paused_and_resumed(fleet: Page, node: RegisteredNode) -> None:
    button(fleet, "Pause node").click()
    expect_text(fleet, "nodes", "paused")
    assert node.poll_id() is None
    button(fleet, "Resume node").click()
    expect(button(fleet, "Pause node")).to_be_visible()
    expect(fleet.locator("#nodes")).not_to_contain_text("paused")


def test_task_is_created_with_a_preview_of_its_target(
    fleet: Page, orchestrator: RunningOrchestrator, tmp_path: Path
) -> None:
    for name in ("client-acme-1", "client-acme-2", "client-beta-1"):
        orchestrator.register(name, tags={"env": "test" if name.endswith("2") else "production"})
    fleet.get_by_text("New task").click()
    fleet.get_by_label("Prompt").fill("from the page")
    fleet.get_by_label("Node name").fill("client-acme-*")
    expect(fleet.locator("#matches")).to_have_text("matches 2 of 3 nodes")
    fleet.get_by_label("Tags").fill("env=production")
    expect(fleet.locator("#matches")).to_have_text("matches 1 of 3 nodes")
    file = tmp_path / "a.txt"
    file.write_text("content")
    fleet.get_by_label("Files").set_input_files(file)
    button(fleet, "Create task").click()
    expect(fleet).to_have_url(TASK_PAGE)
    expect_text(fleet, "facts", "from the page")
    (task,) = orchestrator.tasks()
    target = {"target_node_name": "client-acme-*", "target_tags": {"env": "production"}}
    assert task.items() >= target.items()
    assert task["files"][0].endswith("-a.txt")


def test_key_is_made_rotated_and_revoked(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    values = {"Description": "builds", "May target": "client-acme-*, shared-1"}
    for label, value in {**values, "Expires after": "30", "Rate limit": "60"}.items():
        fleet.get_by_label(label).fill(value)
    fleet.get_by_label("Name", exact=True).fill("acme-ci")
    button(fleet, "Create key").click()
    expect_text(fleet, "new-key", "vk_")
    (key,) = rows(orchestrator.admin.get("/keys"))
    for shown in ("acme-ci", "builds", "client-acme-*, shared-1", key["expires_at"][:10], "60"):
        expect_text(fleet, "key-list", shown)
    secret = str(fleet.locator("#new-key").text_content()).rpartition(" ")[2]
    body = {"prompt": "p", "target_node_name": "shared-1"}
    ok(orchestrator.client(secret).post("/tasks", json=body))
    button(fleet, "Rotate").click()
    expect_text(fleet, "new-key", "Rotated key")
    fleet.once("dialog", lambda dialog: dialog.accept())
    button(fleet, "Revoke").click()
    expect_text(fleet, "key-list", "revoked")
    assert orchestrator.client(secret).post("/tasks", json=body).status_code == 401


def test_token_is_made_and_revoked(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    values = {"Token name": "acme", "Names of nodes": "client-acme-*, shared-1"}
    for label, value in {**values, "Valid for": "30", "Registers at most": "9"}.items():
        fleet.get_by_label(label).fill(value)
    button(fleet, "Create token").click()
    expect_text(fleet, "new-token", "vr_")
    (token,) = rows(orchestrator.admin.get("/registration-tokens"))
    secret = str(fleet.locator("#new-token").text_content()).rpartition(" ")[2]
    ok(orchestrator.try_to_register("shared-1", secret))
    for shown in ("acme", "client-acme-*, shared-1", token["expires_at"][:10], "valid", "1 of 9"):
        expect_text(fleet, "token-list", shown)
    fleet.once("dialog", lambda dialog: dialog.accept())
    button(fleet, "Revoke").click()
    expect_text(fleet, "token-list", "No registration tokens yet")
    assert orchestrator.try_to_register("shared-1", secret).status_code == 401


def test_refusal_stays_in_view_until_over(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    fleet.set_viewport_size(PHONE)
    fleet.get_by_text("New task").click()
    fleet.get_by_label("Prompt").fill("at last")
    _create_task(fleet, "nonsense")
    expect_text(fleet, "state", "cron")
    orchestrator.register("comes-later")
    expect_text(fleet, "nodes", "comes-later")
    expect_text(fleet, "state", "cron")
    expect(fleet.locator("#state")).to_be_in_viewport()
    button(fleet, "Dismiss").press("Enter")
    expect(fleet.locator("#state")).to_have_text("")
    expect(button(fleet, "Create task")).to_be_focused()
    _create_task(fleet, "more nonsense")
    expect_text(fleet, "state", "cron")
    _create_task(fleet, "0 8 * * mon")
    expect_text(fleet, "facts", "at last")
    expect(fleet.locator("#state")).to_have_text("")
    assert len(orchestrator.tasks()) == 1


def test_hostile_texts_are_shown_as_texts(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.register(HOSTILE, tags={HOSTILE: HOSTILE})
    orchestrator.create_task(HOSTILE, target_node_name=HOSTILE)
    orchestrator.create_key(name=HOSTILE, description=HOSTILE, allowed_node_patterns=[HOSTILE])
    orchestrator.create_token(HOSTILE, name=HOSTILE)
    for part in ("#tasks", "#nodes", "#key-list", "#token-list"):
        expect(fleet.locator(part)).to_contain_text(HOSTILE)
        expect(fleet.locator(f"{part} img, {part} script")).to_have_count(0)
    assert fleet.evaluate("window.harmed") is None


def test_long_words_neither_widen_the_page_nor_wrap_the_cells_beside_them(
    fleet: Page, orchestrator: RunningOrchestrator
) -> None:
    orchestrator.register("n" * 200, tags={"k" * 200: "v" * 200})
    target = {"target_node_name": "n" * 200, "target_tags": {"k" * 100: "v"}}
    orchestrator.create_task("x" * 300, **target)
    texts = {"name": "k" * 200, "description": "d" * 200, "allowed_node_patterns": ["p" * 200]}
    orchestrator.create_key(**texts)
    orchestrator.create_token("p" * 200, name="t" * 200)
    for letter in "xnkt":
        expect_text(fleet, "content", letter * 100)
    for width in (1280, 1040, 800, 320):
        fleet.set_viewport_size({"width": width, "height": 740})
        assert fleet.evaluate("document.documentElement.scrollWidth") <= width
        for text in ("pending", "submitter", "Rotate", "Revoke") if width >= 800 else ():
            cell = fleet.locator("table *").get_by_text(text, exact=True).first
            assert cell.evaluate(COUNT_LINES) == 1, (width, text)


def test_pages_have_no_barriers(page: Page, orchestrator: RunningOrchestrator) -> None:
    assert accessibility_faults(page) == []
    nodes = [orchestrator.register(f"node-{number}", tags={"env": "test"}) for number in range(4)]
    for node, status in zip(nodes, ("running", "success", "error", "analyzing"), strict=True):
        orchestrator.assign(node, status)
    ok(orchestrator.admin.post(f"/nodes/{nodes[0].id}/pause"))
    orchestrator.cancel(orchestrator.create_task(recurrence="@daily")["id"])
    orchestrator.create_task(recurrence="@daily")
    orchestrator.create_key()
    orchestrator.create_token()
    _sign_in(page, orchestrator.admin_key)
    expect_text(page, "token-list", "acme")
    page.get_by_text("New task").click()
    assert accessibility_faults(page) == []


@pytest.mark.parametrize(("scheme", "color"), [("light", "255, 255, 255"), ("dark", "20, 23, 26")])
def test_background_is_that_of_the_color_scheme(page: Page, scheme: str, color: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb({color})"


def test_keyboard_is_enough(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_task("by keyboard")
    link = fleet.get_by_role("link", name="by keyboard")
    link.wait_for()
    fleet.locator("body").press("Tab")
    is_focused = "element => element === document.activeElement"
    for _ in range(30):
        if not link.evaluate(is_focused):
            fleet.keyboard.press("Tab")
    fleet.keyboard.press("Enter")
    expect_text(fleet, "facts", "by keyboard")
