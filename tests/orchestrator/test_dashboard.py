"""The page for people, in a real browser without a screen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from tests.orchestrator.serving import DEADLINE_S, RegisteredNode, RunningOrchestrator, ok, rows
from tools.dev.packages import ensure_browser

HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>{{7*7}}"\'&'
PHONE = ViewportSize(width=360, height=740)
DESKTOP = ViewportSize(width=1280, height=740)
# A text has one rectangle for each of its lines.
COUNT_LINES = """element => { const range = document.createRange();
    range.selectNodeContents(element); return range.getClientRects().length; }"""


# Not once a session: while Playwright runs, no test in this process can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its sandbox needs what containers and root do not have; it opens our own page only.
        browser = playwright.chromium.launch(
            executable_path=ensure_browser(), args=["--no-sandbox"], timeout=DEADLINE_S * 1000
        )
        yield browser
        browser.close()


@pytest.fixture
def page(orchestrator: RunningOrchestrator, browser: Browser) -> Iterator[Page]:
    """Open the page; it must call no other server, and raise no error."""
    context = browser.new_context()
    context.set_default_timeout(DEADLINE_S * 1000)
    expect.set_options(timeout=DEADLINE_S * 1000)
    page = context.new_page()
    requested: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{orchestrator.url}/dashboard")
    yield page
    foreign = [url for url in requested if not url.startswith(orchestrator.url)]
    assert (errors, foreign) == ([], [])
    context.close()


@pytest.fixture
def fleet(page: Page, orchestrator: RunningOrchestrator) -> Page:
    _sign_in(page, orchestrator.admin_key)
    expect(page.locator("#nodes-title")).to_be_visible()
    return page


def _sign_in(page: Page, key: str) -> None:
    page.get_by_label("Admin key").fill(key)
    page.keyboard.press("Enter")


def _button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def _expect_text(page: Page, part: str, text: str) -> None:
    expect(page.locator(f"#{part}")).to_contain_text(text)


def _expect_in_view(focused: Locator) -> None:
    expect(focused).to_be_focused()
    expect(focused).to_be_in_viewport()


def _create_task(page: Page, recurrence: str) -> None:
    page.get_by_label("Repeat").fill(recurrence)
    _button(page, "Create task").click()


def test_page_needs_no_key_but_its_data_does(page: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_task("the-prompt")
    expect(page.get_by_label("Admin key")).to_be_focused()
    for key, sentence in (("wrong", "unknown or expired"), ("schlüssel→", "cannot be a key")):
        _sign_in(page, key)
        _expect_text(page, "state", sentence)
        expect(page.get_by_label("Admin key")).to_be_focused()
    expect(page.get_by_text("the-prompt")).to_have_count(0)
    _sign_in(page, orchestrator.admin_key)
    expect(page.get_by_text("the-prompt")).to_be_visible()
    _button(page, "Sign out").click()
    expect(page.get_by_text("the-prompt")).to_have_count(0)


@pytest.mark.settings(failures_per_minute=2)
def test_throttled_sign_in_is_retried(page: Page) -> None:
    # Each wrong key counts once, though the page has more than one call to make.
    for number in range(2):
        _sign_in(page, f"wrong {number}")
        expect(page.locator("#state")).to_have_text("unknown or expired API key")
        expect(page.locator("#sign-in")).to_be_visible()
    _sign_in(page, "wrong again")
    _expect_text(page, "state", "too many wrong credentials")
    _expect_text(page, "state", "retrying in")
    expect(page.locator("#fleet")).to_be_hidden()


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
    _expect_text(page, "state", shown)
    page.unroute("**/dashboard/live*")
    expect(page.locator("#nodes-title")).to_be_visible()
    expect(page.locator("#state")).to_have_text("")


def test_outage_is_shown_until_its_end(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.stop()
    _expect_text(fleet, "state", "does not answer")
    orchestrator.start()
    orchestrator.register("comes-later")
    _expect_text(fleet, "nodes", "comes-later")
    expect(fleet.locator("#state")).to_have_text("")


def test_changes_are_shown_without_reloading(
    fleet: Page, orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    _expect_text(fleet, "nodes", "node")
    task = orchestrator.create_task("count the lines")
    _button(fleet, "count the lines").click()
    _expect_text(fleet, "task", "pending")
    node.poll()
    node.report(task["id"], "running", message="half of it", progress=50)
    _expect_text(fleet, "task", "half of it")
    _expect_text(fleet, "tasks", "50 %")
    messages = [{"role": "user", "content": "please"}]
    node.send_log(task["id"], {"title": "how it went", "messages": messages})
    _expect_text(fleet, "task", "how it went")
    node.report(task["id"], "success", message="three lines")
    _expect_text(fleet, "task", "three lines")
    expect(_button(fleet, "Cancel")).to_have_count(0)


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
    _button(fleet, "Create task").click()
    _expect_text(fleet, "task", "from the page")
    (task,) = orchestrator.tasks()
    target = {"target_node_name": "client-acme-*", "target_tags": {"env": "production"}}
    assert task.items() >= target.items()
    assert task["files"][0].endswith("-a.txt")


def test_task_is_cancelled_after_a_question(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    task_id = orchestrator.create_task("never mind")["id"]
    _button(fleet, "never mind").click()
    fleet.once("dialog", lambda dialog: dialog.dismiss())
    _button(fleet, "Cancel").click()
    assert orchestrator.task(task_id)["status"] == "pending"
    fleet.once("dialog", lambda dialog: dialog.accept())
    _button(fleet, "Cancel").click()
    _expect_text(fleet, "task", "cancelled")
    assert orchestrator.task(task_id)["status"] == "cancelled"


def test_key_is_made_rotated_and_revoked(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    values = {"Description": "builds", "May target": "client-acme-*, shared-1"}
    for label, value in {**values, "Expires after": "30", "Rate limit": "60"}.items():
        fleet.get_by_label(label).fill(value)
    fleet.get_by_label("Name", exact=True).fill("acme-ci")
    _button(fleet, "Create key").click()
    _expect_text(fleet, "new-key", "vk_")
    (key,) = rows(orchestrator.admin.get("/keys"))
    for shown in ("acme-ci", "builds", "client-acme-*, shared-1", key["expires_at"][:10], "60"):
        _expect_text(fleet, "key-list", shown)
    secret = str(fleet.locator("#new-key").text_content()).rpartition(" ")[2]
    body = {"prompt": "p", "target_node_name": "shared-1"}
    ok(orchestrator.client(secret).post("/tasks", json=body))
    _button(fleet, "Rotate").click()
    _expect_text(fleet, "new-key", "Rotated key")
    fleet.once("dialog", lambda dialog: dialog.accept())
    _button(fleet, "Revoke").click()
    _expect_text(fleet, "key-list", "revoked")
    assert orchestrator.client(secret).post("/tasks", json=body).status_code == 401


def test_token_is_made_and_revoked(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    values = {"Token name": "acme", "Names of nodes": "client-acme-*, shared-1"}
    for label, value in {**values, "Valid for": "30", "Registers at most": "9"}.items():
        fleet.get_by_label(label).fill(value)
    _button(fleet, "Create token").click()
    _expect_text(fleet, "new-token", "vr_")
    (token,) = rows(orchestrator.admin.get("/registration-tokens"))
    secret = str(fleet.locator("#new-token").text_content()).rpartition(" ")[2]
    ok(orchestrator.try_to_register("shared-1", secret))
    for shown in ("acme", "client-acme-*, shared-1", token["expires_at"][:10], "valid", "1 of 9"):
        _expect_text(fleet, "token-list", shown)
    fleet.once("dialog", lambda dialog: dialog.accept())
    _button(fleet, "Revoke").click()
    _expect_text(fleet, "token-list", "No registration tokens yet")
    assert orchestrator.try_to_register("shared-1", secret).status_code == 401


def test_refusal_stays_in_view_until_over(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    fleet.set_viewport_size(PHONE)
    fleet.get_by_text("New task").click()
    fleet.get_by_label("Prompt").fill("at last")
    _create_task(fleet, "nonsense")
    _expect_text(fleet, "state", "cron")
    orchestrator.register("comes-later")
    _expect_text(fleet, "nodes", "comes-later")
    _expect_text(fleet, "state", "cron")
    expect(fleet.locator("#state")).to_be_in_viewport()
    _button(fleet, "Dismiss").press("Enter")
    expect(fleet.locator("#state")).to_have_text("")
    expect(_button(fleet, "Create task")).to_be_focused()
    _create_task(fleet, "more nonsense")
    _expect_text(fleet, "state", "cron")
    _create_task(fleet, "0 8 * * mon")
    _expect_text(fleet, "task", "at last")
    expect(fleet.locator("#state")).to_have_text("")
    assert len(orchestrator.tasks()) == 1


def test_hostile_texts_are_shown_as_texts(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register(HOSTILE, tags={HOSTILE: HOSTILE})
    task_id = orchestrator.assign(node, prompt=HOSTILE, target_node_name=HOSTILE)
    messages = [{"role": HOSTILE, "content": HOSTILE}]
    node.send_log(task_id, {"title": HOSTILE, "messages": messages})
    node.report(task_id, "error", message=HOSTILE)
    orchestrator.create_key(name=HOSTILE, description=HOSTILE, allowed_node_patterns=[HOSTILE])
    orchestrator.create_token(HOSTILE, name=HOSTILE)
    fleet.locator("#tasks button").click()
    expect(fleet.locator("#task pre").first).to_have_text(HOSTILE)
    for part in ("#chosen", "#log", "#tasks", "#nodes", "#key-list", "#token-list"):
        expect(fleet.locator(part)).to_contain_text(HOSTILE)
        expect(fleet.locator(f"{part} img, {part} script")).to_have_count(0)
    assert fleet.evaluate("window.harmed") is None


def test_long_words_neither_widen_the_page_nor_wrap_the_cells_beside_them(
    fleet: Page, orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.register("n" * 200, tags={"k" * 200: "v" * 200})
    target = {"target_node_name": "n" * 200, "target_tags": {"k" * 100: "v"}}
    orchestrator.create_task("x" * 300, **target)
    texts = {"name": "k" * 200, "description": "d" * 200, "allowed_node_patterns": ["p" * 200]}
    orchestrator.create_key(**texts)
    orchestrator.create_token("p" * 200, name="t" * 200)
    task_id = orchestrator.assign(node, prompt="x" * 300)
    messages = [{"role": "r" * 300, "content": "c" * 300}]
    node.send_log(task_id, {"title": "t" * 300, "messages": messages})
    node.report(task_id, "running", message="m" * 300)
    fleet.locator(f"#show-{task_id}").click()
    for letter in "xrctm":
        _expect_text(fleet, "fleet", letter * 300)
    for width in (1280, 1040, 800, 360):
        fleet.set_viewport_size({"width": width, "height": 740})
        assert fleet.evaluate("document.documentElement.scrollWidth") <= width
        for text in ("pending", "submitter", "Rotate", "Revoke") if width >= 800 else ():
            cell = fleet.locator("table *").get_by_text(text, exact=True).first
            assert cell.evaluate(COUNT_LINES) == 1, (width, text)


@pytest.mark.parametrize(("scheme", "color"), [("light", "255, 255, 255"), ("dark", "20, 23, 26")])
def test_background_is_that_of_the_color_scheme(page: Page, scheme: str, color: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb({color})"


def test_keyboard_is_enough(fleet: Page, orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_task("by keyboard")
    button = _button(fleet, "by keyboard")
    button.wait_for()
    fleet.locator("body").press("Tab")
    is_focused = "element => element === document.activeElement"
    for _ in range(30):
        if not button.evaluate(is_focused):
            fleet.keyboard.press("Tab")
    fleet.keyboard.press("Enter")
    _expect_text(fleet, "task", "by keyboard")


def test_view_and_focus_follow_the_choice_and_no_report(
    fleet: Page, orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, prompt="the chosen one")
    for number in range(60):
        orchestrator.create_task(f"task number {number}.")
    # Rows that come later would move the others.
    _button(fleet, "task number 59.").wait_for()
    button, other = _button(fleet, "the chosen one"), _button(fleet, "task number 0.")
    for size in (PHONE, DESKTOP):
        fleet.set_viewport_size(size)
        button.press("Enter")
        _expect_in_view(fleet.locator("#task h2"))
        _button(fleet, "Close").press("Enter")
        expect(fleet.locator("#chosen")).to_be_empty()
        _expect_in_view(button)
    button.press("Enter")
    _expect_in_view(fleet.locator("#task h2"))
    other.focus()
    node.report(task_id, "running", message="on its way")
    _expect_text(fleet, "task", "on its way")
    _expect_in_view(other)
