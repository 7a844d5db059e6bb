"""The report in headless Chromium: layout, mouse, keyboard, contrast and network."""

import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from records import record
from small import DIGITS

from reloss.report.page import write_report

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
ROWS = "#results-caption ~ tbody tr"

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgb(getComputedStyle(each).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const hidden = !each.getClientRects().length || each.closest(".skip, script, style");
    if (!own || hidden) continue;
    const style = getComputedStyle(each);
    const [a, b] = [light(rgb(each.closest("svg") ? style.fill : style.color)), light(behind(each))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${each.tagName} ${each.className} ${each.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, driven by playwright; a skip where there is none, a failure where one is required."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = "no Chromium is installed (Debian: apt-get install chromium)"
        if os.environ.get("RELOSS_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox needs rights that root in a container lacks; the page is our own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(report_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(report_runs, path)
    return path


@pytest.fixture
def visit(chromium, report):
    """Opens the report; what it logs, asks of the network or fails on ends the test."""
    opened, wrong = [], []

    def open_page(path=report, viewport=DESKTOP, **more):
        page = chromium.new_page(viewport=viewport, **more)
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: wrong.append(request.url) if _leaves(request.url) else None)
        page.goto(path.as_uri())
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert wrong == []


def _leaves(url):
    return not url.startswith(("file:", "data:"))


def shown(page, selector=ROWS, what="each.innerText"):
    """Return of all elements that are visible what the expression `what` says."""
    return page.eval_on_selector_all(
        selector, f"all => all.filter((each) => each.checkVisibility()).map((each) => {what})"
    )


def column(page, table, number):
    cells = shown(page, f"#{table}-caption ~ tbody tr td:nth-child({number})")
    return [cell.split("\n")[0] for cell in cells]


def button(page, table, name):
    return page.locator(f"#{table}-caption ~ thead th", has_text=name).get_by_role("button")


def test_it_shows_what_was_run_and_hides_what_was_not(visit):
    page = visit()
    assert page.title() == "reloss: results"
    assert page.get_by_role("heading", name="Does training with it help?").is_visible()
    rows = shown(page)
    assert 5 <= len(rows) < 10
    assert not any("not run" in row for row in rows)
    assert page.locator("#count").inner_text().startswith(f"{len(rows)} of ")
    page.get_by_label("show rows without runs").check()
    every = shown(page)
    assert len(every) > 100
    assert any("no record" in row for row in every)
    assert page.evaluate("window.hostile") is None


def test_a_click_sorts_by_number_and_once_more_turns_it_round(visit):
    page = visit()
    page.get_by_label("show rows without runs").check()
    ours = button(page, "results", "ours, %")
    header = page.locator("#results-caption ~ thead th", has_text="ours, %")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        ours.click()
        assert header.get_attribute("aria-sort") == direction
        values = column(page, "results", 5)
        means = [float(value.split(" ")[0]) for value in values if value[0].isdigit()]
        assert means == sorted(means, key=lambda value: sign * value)
        assert len(means) >= 5
        assert len(values) > 100
        assert not any(value[0].isdigit() for value in values[len(means) :])  # no number: at the end
    button(page, "results", "loss").click()
    assert header.get_attribute("aria-sort") is None
    losses = column(page, "results", 2)
    assert losses == sorted(losses)


def test_the_keyboard_reaches_and_sorts(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    for _ in range(page.locator("nav a").count()):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.parentElement.tagName") == "NAV"
    for name in ("task", "absent"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    page.keyboard.press("Tab")  # the box of the first table, which scrolls
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert (page.evaluate("document.activeElement.textContent"), outline) == ("experiment", "solid")
    for key, direction in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.parentElement.getAttribute('aria-sort')") == direction


def test_the_filter_keeps_one_task(visit):
    page = visit()
    page.locator("#task").select_option("pose")
    assert shown(page, f"{ROWS} th") == ["pose/lsp_resnet18"]
    assert shown(page, ".experiment h3") == ["pose/lsp_resnet18"]
    page.get_by_label("show rows without runs").check()
    assert {name.split("/")[0] for name in shown(page, f"{ROWS} th")} == {"pose"}
    page.locator("#task").select_option("all")
    assert len(shown(page)) > 100


@pytest.mark.parametrize("absent", [False, True])
def test_a_phone_scrolls_the_tables_and_not_the_page(visit, absent):
    page = visit(viewport=PHONE)
    page.get_by_label("show rows without runs").set_checked(absent)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("scrollTo(100, 0), scrollX") == 0
    assert max(shown(page, ".box", "each.getBoundingClientRect().right")) <= PHONE["width"]
    size = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(visit, scheme):
    page = visit(color_scheme=scheme)
    page.get_by_label("show rows without runs").check()
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(word.strip("rgb() ")) for word in background.split(","))
    assert brightness > 700 if scheme == "light" else brightness < 100
    assert page.evaluate(CONTRAST) == []


def test_without_scripts_everything_is_there(visit):
    page = visit(java_script_enabled=False)
    assert len(shown(page)) > 100
    assert not page.locator(".controls").is_visible()
    assert page.locator("summary").count() > 100


def test_paper_shows_what_is_closed_on_the_screen(visit):
    page = visit()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.fixture
def served(report):
    """A server of this machine that has the report and an empty page, and what else was asked of it."""
    pages = {"/report": report.read_bytes(), "/empty": b"<!doctype html><title>empty</title><body>"}
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))
            if self.path not in pages:
                paths.append(self.path)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()


def test_the_browser_itself_refuses_whatever_is_not_in_the_page(chromium, served):
    url, paths = served
    script = """async () => {
      const refused = [];
      document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
      new Image().src = "/picture";
      document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
      await fetch("/data").catch(() => null);
      await new Promise((done) => setTimeout(done, 200));
      return refused;
    }"""
    page = chromium.new_page()
    page.goto(f"{url}/empty")
    assert page.evaluate(script) == []
    assert {"/data", "/picture"} <= set(paths)  # without the policy both are fetched
    page.goto(f"{url}/report")
    paths.clear()
    assert {"img-src", "script-src-elem", "connect-src"} <= set(page.evaluate(script))
    assert page.evaluate("window.ran") is None
    assert paths == []
    page.close()


def test_a_sweep_of_hundreds_of_runs_sorts_and_filters_at_once(visit, tmp_path):
    for seed in range(10):
        for rate in range(20):
            record(tmp_path / "runs", DIGITS, "ce", seed, 0.5 + rate / 100, settings=(f"train.lr={rate}",))
    path = tmp_path / "report.html"
    assert write_report(tmp_path / "runs", path) < 2_000_000
    page = visit(path)
    milliseconds = page.evaluate(
        """() => {
          const began = performance.now();
          document.querySelector("#records-caption ~ thead button").click();
          document.getElementById("task").dispatchEvent(new Event("change"));
          return performance.now() - began;
        }"""
    )
    assert milliseconds < 3000
