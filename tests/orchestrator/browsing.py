"""A real browser without a screen, which the tests of the pages share."""

from collections.abc import Iterator
from contextlib import contextmanager

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator
from tools.dev.packages import ensure_browser

HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>{{7*7}}"\'&'
PHONE = ViewportSize(width=360, height=740)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser for a module: while Playwright runs, no test can run an event loop."""
    with sync_playwright() as playwright:
        # Its sandbox needs what containers and root do not have; it opens our own page only.
        browser = playwright.chromium.launch(
            executable_path=ensure_browser(), args=["--no-sandbox"], timeout=DEADLINE_S * 1000
        )
        yield browser
        browser.close()


@contextmanager
def new_page(browser: Browser, orchestrator: RunningOrchestrator) -> Iterator[Page]:
    """Yield a page, which must call no other server, and raise no error."""
    context = browser.new_context()
    context.set_default_timeout(DEADLINE_S * 1000)
    expect.set_options(timeout=DEADLINE_S * 1000)
    page = context.new_page()
    requested: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    ours = (orchestrator.url, f"blob:{orchestrator.url}")
    foreign = [url for url in requested if not url.startswith(ours)]
    assert (errors, foreign) == ([], [])
    context.close()


def sign_in(page: Page, label: str, key: str) -> None:
    page.get_by_label(label).fill(key)
    page.keyboard.press("Enter")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def expect_text(page: Page, part: str, text: str) -> None:
    expect(page.locator(f"#{part}")).to_contain_text(text)


def accessibility_faults(page: Page) -> list[str]:
    """Return what axe finds: WCAG 2 A and AA and its best practices, in light and in dark."""
    faults = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        for violation in Axe().run(page).response["violations"]:
            targets = [node["target"] for node in violation["nodes"]]
            faults.append(f"{scheme}: {violation['id']}: {targets}")
    return faults
