"""The page of a task, in a real browser: what it prints and made, its life, and what to do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from playwright.sync_api import Browser, Page, expect

from orchestrator.db.output import HEAD_BYTES
from tests.orchestrator.browsing import (
    HOSTILE,
    accessibility_faults,
    button,
    expect_text,
    new_page,
    running_browser,
    sign_in,
)
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok

TIMES = {"created_at": 1_790_000_000, "finished_at": 1_790_000_000_000}
"""Of an agent's message: in seconds, or in milliseconds."""
TERMINAL = (
    "\x1b[1;31mred\x1b[0m \x1b[38;2;0;0;255mblue\x1b[39m \x1b[48;5;196mbar\x1b[m\r\n"
    "\x1b]0;title\x07\x1b[2J\x1b[8mseen\x1b[0m \x1b]8;;https://evil.example/\x1b\\link\x1b]8;;\x1b\\"
    "\x9b5A\x00\u202e\x1b[3"
)
"""Colours, and much else of what a terminal can do; the last sequence is not complete."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(orchestrator: RunningOrchestrator, browser: Browser) -> Iterator[Page]:
    with new_page(browser, orchestrator) as page:
        yield page


@pytest.fixture
def show(page: Page, orchestrator: RunningOrchestrator) -> Callable[[str], Page]:
    def show(task_id: str) -> Page:
        page.goto(f"{orchestrator.url}/dashboard/tasks/{task_id}")
        sign_in(page, "API key", orchestrator.admin_key)
        expect(page.locator("#content")).to_be_visible()
        return page

    return show


def _print(node: RegisteredNode, task_id: str, offset: int, text: str, *, done: bool) -> int:
    body = {"offset": offset, "text": text, "done": done}
    return int(ok(node.http.post(f"/tasks/{task_id}/output", json=body))["length"])


def _download(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as download:
        button(page, name).click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_task_is_followed_from_its_address_to_its_end(
    show: Callable[[str], Page],
    orchestrator: RunningOrchestrator,
    node: RegisteredNode,
    tmp_path: Path,
) -> None:
    task_id = ok(orchestrator.admin.post("/tasks", json={"prompt": "count the lines"}))["id"]
    page = show(task_id)
    expect_text(page, "facts", "it waits for its turn: of 1 node matching, 1 is free")
    assert node.poll_id() == task_id
    node.report(task_id, "running", message="half of it", progress=50)
    expect_text(page, "history", "half of it")
    expect(page.locator("#facts [data-since]")).to_contain_text(" s")
    length = _print(node, task_id, 0, "first\n", done=False)
    expect(page.locator("#output")).to_have_text("first")
    # A report takes away neither the focus nor what is selected in the output.
    page.get_by_label("Follow").focus()
    _print(node, task_id, length, "second\n", done=True)
    expect_text(page, "output", "second")
    node.put_artifact(task_id, "reports/ä.txt", b"report")
    node.put_artifact(task_id, "table.csv", b"1,2")
    node.send_log(task_id, {"title": "how it went", "messages": [{"content": "please", **TIMES}]})
    node.report(task_id, "success", message="three lines")
    expect_text(page, "facts", "three lines")
    expect(page.get_by_label("Follow")).to_be_focused()
    expect_text(page, "output-state", "Complete")
    expect_text(page, "log", "2026-09-21 14:13:20 UTC")
    expect(page.locator("#history li").last).not_to_contain_text("for ")
    expect(page.locator("#history li").first).to_contain_text(", for ")
    assert _download(page, "Download output", tmp_path).read_text() == "first\nsecond\n"
    assert _download(page, "Download reports/ä.txt", tmp_path).read_bytes() == b"report"
    assert "how it went" in _download(page, "Download log", tmp_path).read_text()
    archive = _download(page, "Download all (ZIP)", tmp_path)
    assert ZipFile(archive).namelist() == ["reports/ä.txt", "table.csv"]
    assert page.title() == f"success: task {task_id[:8]}"
    # The address is enough to see it again.
    page.reload()
    expect(page.locator("#output")).to_have_text("first\nsecond")


def test_page_has_no_barriers(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    page = show(task_id)
    _print(node, task_id, 0, TERMINAL + "line\n" * 200, done=False)
    expect_text(page, "output", "line")
    assert accessibility_faults(page) == []
    node.put_artifact(task_id, "report.txt", b"report")
    node.send_log(task_id, {"title": "t", "messages": [{"role": "user", "content": "a", **TIMES}]})
    orchestrator.cancel(task_id)
    node.report(task_id, "error", message="was cancelled")
    expect_text(page, "facts", "gone: its node reported this at")
    expect_text(page, "log", "user")
    assert accessibility_faults(page) == []


def test_output_has_colours_and_nothing_else_of_a_terminal(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    page = show(task_id)
    length = _print(node, task_id, 0, TERMINAL, done=False)
    expect_text(page, "output", "link")
    _print(node, task_id, length, f"2mgreen\x1b[0m{HOSTILE}", done=True)
    expect(page.locator("#output")).to_have_text(f"red blue bar\nseen linkgreen{HOSTILE}")
    expect(page.locator("#output a, #output img, #output script")).to_have_count(0)
    assert page.title() == f"running: task {task_id[:8]}"
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        for text in ("red", "blue", "green"):
            span = page.locator("#output span.fg", has_text=text)
            colours[scheme, text] = span.evaluate("one => getComputedStyle(one).color")
    assert len(set(colours.values())) == 6
    assert page.locator("#output .bold").text_content() == "red"
    assert page.locator("#output .bg").text_content() == "bar"


def test_output_is_followed_until_the_reader_scrolls_up(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    lines = "".join(f"line {number}\n" for number in range(300))
    length = _print(node, task_id, 0, lines, done=False)
    page = show(task_id)
    output, follow = page.locator("#output"), page.get_by_label("Follow")
    expect_text(page, "output", "line 299")
    at_end = "one => one.scrollHeight - one.scrollTop - one.clientHeight < 8"
    assert output.evaluate(at_end)
    output.focus()
    page.keyboard.press("Home")
    expect(follow).not_to_be_checked()
    _print(node, task_id, length, "the last line\n", done=True)
    expect_text(page, "output", "the last line")
    assert not output.evaluate(at_end)
    follow.check()
    assert output.evaluate(at_end)


@pytest.mark.long
def test_long_output_is_shown_from_a_line_near_its_end(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, length = orchestrator.assign(node, "running"), 0
    for number in range(3):
        length = _print(node, task_id, length, f"{number:0255}\n" * 1500, done=number == 2)
    assert 1_000_000 < length < HEAD_BYTES
    node.report(task_id, "success")
    page = show(task_id)
    expect_text(page, "output-state", "Complete")
    expect(page.locator("#output-cut")).to_be_visible()
    text = str(page.locator("#output").text_content())
    assert (len(text) < 1_000_000, {len(line) for line in text.splitlines()}) == (True, {255})


@pytest.mark.long
def test_output_starts_over_when_the_task_runs_at_another_node(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.create_task()["id"]
    assert node.poll_id() == task_id
    _print(node, task_id, 0, "of the first node\n", done=False)
    page = show(task_id)
    expect(page.locator("#output")).to_have_text("of the first node")
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    other = orchestrator.register("other")
    assert other.poll_id() == task_id
    _print(other, task_id, 0, "second\n", done=False)
    expect(page.locator("#output")).to_have_text("second")


@pytest.mark.long
def test_page_that_nobody_sees_holds_no_connection_and_goes_on_where_it_was(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    length = _print(node, task_id, 0, "first\n", done=False)
    page = show(task_id)
    expect(page.locator("#output")).to_have_text("first")
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.url.rpartition("/")[2]))
    change = """is_hidden => { Object.defineProperty(document, "hidden",
        { value: is_hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange")); }"""
    page.evaluate(change, arg=True)
    while len(ended) < 2:
        page.wait_for_timeout(20)
    assert sorted(ended) == ["live", "output"]
    _print(node, task_id, length, "second\n", done=True)
    node.report(task_id, "success")
    page.evaluate(change, arg=False)
    expect(page.locator("#output")).to_have_text("first\nsecond\n")
    expect_text(page, "facts", "success")


@pytest.mark.long
def test_output_goes_on_after_an_outage_without_a_line_twice(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    length = _print(node, task_id, 0, "first\n", done=False)
    page = show(task_id)
    expect(page.locator("#output")).to_have_text("first")
    orchestrator.stop()
    expect_text(page, "state", "does not answer")
    expect_text(page, "output-state", "Retrying")
    orchestrator.start()
    _print(node, task_id, length, "second\n", done=True)
    expect(page.locator("#output")).to_have_text("first\nsecond\n")
    expect(page.locator("#state")).to_have_text("")
    expect(page.locator("#output-state")).not_to_contain_text("Retrying")


def test_task_is_cancelled_run_again_and_deleted(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running", prompt="never mind")
    page = show(task_id)
    page.once("dialog", lambda dialog: dialog.dismiss())
    button(page, "Cancel").click()
    assert orchestrator.task(task_id)["status"] == "running"
    page.once("dialog", lambda dialog: dialog.accept())
    button(page, "Cancel").press("Enter")
    expect_text(page, "facts", "may still run")
    # The button is gone; the focus is not lost.
    expect(page.locator("#task-state")).to_be_focused()
    page.once("dialog", lambda dialog: dialog.accept())
    button(page, "Delete").click()
    expect_text(page, "state", "has not reported the end of its container")
    node.report(task_id, "error", message="was cancelled")
    expect_text(page, "facts", "gone: its node reported this at")
    button(page, "Run again").click()
    expect(page.get_by_role("link", name=f"task {task_id[:8]}")).to_be_visible()
    assert [task["prompt"] for task in orchestrator.tasks()] == ["never mind"] * 2
    page.get_by_role("link", name=f"task {task_id[:8]}").click()
    page.once("dialog", lambda dialog: dialog.accept())
    button(page, "Delete").click()
    expect(page).to_have_url(f"{orchestrator.url}/dashboard")
    assert len(orchestrator.tasks()) == 1


def test_key_sees_and_does_on_the_page_what_its_role_may(
    page: Page, orchestrator: RunningOrchestrator
) -> None:
    key = orchestrator.create_key(role="operator")["api_key"]
    own = ok(orchestrator.client(key).post("/tasks", json={"prompt": "own"}))["id"]
    other = orchestrator.create_task("of somebody else")["id"]
    page.goto(f"{orchestrator.url}/dashboard/tasks/{own}")
    sign_in(page, "API key", key)
    expect_text(page, "facts", "with ci")
    expect_text(page, "facts", "no node is registered")
    expect(button(page, "Cancel")).to_be_visible()
    expect(button(page, "Delete")).to_have_count(0)
    page.goto(f"{orchestrator.url}/dashboard/tasks/{other}")
    expect_text(page, "state", "there is no such task")
    expect(page.get_by_text("of somebody else")).to_have_count(0)
    button(page, "Sign out").click()
    expect(page.get_by_label("API key")).to_be_focused()


def test_hostile_and_long_texts_are_texts_that_fit_a_phone(
    show: Callable[[str], Page], orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    text = HOSTILE + "x" * 300
    name = HOSTILE.replace("/", "") + "y" * 100
    task_id = orchestrator.assign(node, "running", prompt=text)
    _print(node, task_id, 0, text, done=True)
    node.put_artifact(task_id, name, b"a")
    node.send_log(task_id, {"title": text, "messages": [{"role": text, "content": text}]})
    node.report(task_id, "error", message=text)
    page = show(task_id)
    for part in ("facts", "output", "artifacts", "history", "log"):
        expect_text(page, part, name if part == "artifacts" else text)
        expect(page.locator(f"#{part} img, #{part} script")).to_have_count(0)
    assert page.evaluate("window.harmed") is None
    for width in (1280, 800, 320):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
