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
  const background = (element) => {
    for (let parent = element; parent; parent = parent.parentElement) {
      const color = rgb(getComputedStyle(parent).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const hidden = !element.getClientRects().length || element.closest(".skip, script, style");
    if (!hasText || hidden) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(rgb(element.closest("svg") ? style.fill : style.color)), light(background(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) {
      faint.push(`${element.tagName} ${element.className} ${element.textContent.trim()}: ${ratio.toFixed(2)}`);
    }
  }
  return faint;
}"""


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, driven by playwright; without it, the tests are skipped, or fail if it is required."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = "no Chromium is installed (Debian: apt-get install chromium)"
        if os.environ.get("RELOSS_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox needs rights that root in a container lacks. The page is trusted.
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
    """Opens the report; a logged message, a network request or an error fails the test."""
    pages, problems = [], []

    def open_page(path=report, viewport=DESKTOP, **more):
        page = chromium.new_page(viewport=viewport, **more)
        page.set_default_timeout(60_000)
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: problems.append(request.url) if _leaves(request.url) else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def _leaves(url):
    return not url.startswith(("file:", "data:"))


def visible(page, selector=ROWS, expression="element.innerText"):
    """Return the value of a JavaScript expression for all visible elements."""
    return page.eval_on_selector_all(
        selector, f"all => all.filter((element) => element.checkVisibility()).map((element) => {expression})"
    )


def column(page, table, number):
    cells = visible(page, f"#{table}-caption ~ tbody tr td:nth-child({number})")
    return [cell.split("\n")[0] for cell in cells]


def button(page, table, name):
    return page.locator(f"#{table}-caption ~ thead th", has_text=name).get_by_role("button")


def test_rows_without_runs_are_hidden_at_first(visit):
    page = visit()
    assert page.title() == "reloss: results"
    assert page.get_by_role("heading", name="Does training with it help?").is_visible()
    rows = visible(page)
    assert 5 <= len(rows) < 10
    assert not any("not run" in row for row in rows)
    assert page.locator("#count").inner_text().startswith(f"{len(rows)} of ")
    page.get_by_label("show rows without runs").check()
    every = visible(page)
    assert len(every) > 100
    assert any("no record" in row for row in every)
    assert page.evaluate("window.hostile") is None


def test_a_click_sorts_by_number_and_a_second_one_reverses(visit):
    page = visit()
    page.get_by_label("show rows without runs").check()
    ours = button(page, "results", "ours, %")
    header = page.locator("#results-caption ~ thead th", has_text="ours, %")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        ours.click()
        assert header.get_attribute("aria-sort") == direction
        values = column(page, "results", 3)
        means = [float(value.split(" ")[0]) for value in values if value[0].isdigit()]
        assert means == sorted(means, key=lambda value: sign * value)
        assert len(means) >= 5
        assert len(values) > 100
        assert not any(value[0].isdigit() for value in values[len(means) :])  # cells without a number come last
    button(page, "results", "loss").click()
    assert header.get_attribute("aria-sort") is None
    losses = column(page, "results", 2)
    assert losses == sorted(losses)


def test_columns_without_a_value_are_hidden(visit):
    page = visit()
    headers = "#results-caption ~ thead th"
    assert not any("published" in header for header in visible(page, headers))
    assert any(
        "published" in header for header in page.eval_on_selector_all(headers, "all => all.map((e) => e.textContent)")
    )
    page.get_by_label("show rows without runs").check()
    assert any("published" in header for header in visible(page, headers))
    page.locator("#task").select_option("nmt")  # none of its numbers could be verified
    assert not any("published" in header for header in visible(page, headers))


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
def test_header_and_first_column_stay_in_view(visit, viewport):
    page = visit(viewport=viewport)
    page.get_by_label("show rows without runs").check()
    moved = page.evaluate("""() => {
      const box = document.querySelector("#results-caption").closest(".box");
      box.scrollIntoView();
      box.scrollTo(80, 600);
      const [frame, head] = [box, box.querySelector("thead th")].map((e) => e.getBoundingClientRect());
      const row = [...box.querySelectorAll("tbody tr")].map((tr) => tr.cells[0].getBoundingClientRect());
      const lefts = row.filter((cell) => cell.top > frame.top).map((cell) => cell.left - frame.left);
      return [box.scrollTop, head.top - frame.top, head.left - frame.left, Math.min(...lefts), frame.height];
    }""")
    assert moved[0] == 600
    assert max(map(abs, moved[1:4])) <= 2
    assert moved[4] <= 0.86 * viewport["height"]


def test_a_phone_shows_the_numbers_without_scrolling(visit):
    page = visit(viewport={"width": 390, "height": 844})
    for table in ("results", "forest"):
        right = page.evaluate(f"""() => {{
          const table = document.querySelector("#{table}-caption").closest("table");
          const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.includes("difference"));
          return table.tBodies[0].rows[0].cells[place].getBoundingClientRect().right;
        }}""")
        assert right <= 390


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
    page.keyboard.press("Tab")  # the scrollable box of the first table
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert (page.evaluate("document.activeElement.textContent"), outline) == ("experiment", "solid")
    for key, direction in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.parentElement.getAttribute('aria-sort')") == direction


def test_the_filter_shows_one_task(visit):
    page = visit()
    page.locator("#task").select_option("pose")
    assert visible(page, f"{ROWS} th") == ["pose/lsp_resnet18"]
    assert visible(page, ".experiment h3") == ["pose/lsp_resnet18"]
    page.get_by_label("show rows without runs").check()
    assert {name.split("/")[0] for name in visible(page, f"{ROWS} th")} == {"pose"}
    page.locator("#task").select_option("all")
    assert len(visible(page)) > 100


@pytest.mark.parametrize("absent", [False, True])
def test_a_phone_scrolls_the_tables_and_not_the_page(visit, absent):
    page = visit(viewport=PHONE)
    page.get_by_label("show rows without runs").set_checked(absent)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("scrollTo(100, 0), scrollX") == 0
    assert max(visible(page, ".box", "element.getBoundingClientRect().right")) <= PHONE["width"]
    size = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(visit, scheme):
    page = visit(color_scheme=scheme)
    page.get_by_label("show rows without runs").check()
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(word.strip("rgb() ")) for word in background.split(","))
    assert brightness > 700 if scheme == "light" else brightness < 100
    assert page.evaluate(CONTRAST) == []


def test_without_scripts_everything_is_shown(visit):
    page = visit(java_script_enabled=False)
    assert len(visible(page)) > 100
    assert not page.locator(".controls").is_visible()
    assert page.locator("summary").count() > 100


def test_printing_opens_what_is_closed(visit):
    page = visit()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    page.set_viewport_size({"width": 1032, "height": 700})  # A4, landscape, without its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032
    displays = "elements => [...new Set(elements.map(element => getComputedStyle(element).display))]"
    assert page.eval_on_selector_all("thead button", displays) == ["contents"]  # painted again on the next page
    assert page.eval_on_selector_all(".charts", displays) == ["block"]  # breaks between its rows
    assert page.pdf().startswith(b"%PDF")


@pytest.fixture
def served(report):
    """A local server with the report and an empty page, and the list of other paths that were requested."""
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


def test_the_browser_refuses_everything_outside_the_page(chromium, served):
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
    assert {"/data", "/picture"} <= set(paths)  # without the policy, both are fetched
    page.goto(f"{url}/report")
    paths.clear()
    assert {"img-src", "script-src-elem", "connect-src"} <= set(page.evaluate(script))
    assert page.evaluate("window.ran") is None
    assert paths == []
    page.close()


@pytest.mark.slow
def test_a_watched_page_loads_again_and_keeps_the_filter(visit, tmp_path):
    path, runs = tmp_path / "report.html", tmp_path / "runs"
    record(runs, DIGITS, "ce", 0, 0.5)
    write_report(runs, path, refresh=5)
    page = visit(path)
    page.locator("#task").select_option("classification")
    record(runs, DIGITS, "ce", 1, 0.5)
    write_report(runs, path, refresh=60)
    page.get_by_text("2 records (2 finished)").wait_for()
    page.wait_for_function("document.getElementById('task').value === 'classification'")  # its script runs at the end


def test_hundreds_of_runs_are_sorted_and_filtered_quickly(visit, tmp_path):
    for seed in range(10):
        for rate in range(20):
            record(tmp_path / "runs", DIGITS, "ce", seed, 0.5 + rate / 100, settings=(f"train.lr={rate}",))
    path = tmp_path / "report.html"
    assert write_report(tmp_path / "runs", path) < 2_000_000
    page = visit(path)
    milliseconds = page.evaluate(
        """() => {
          const started = performance.now();
          document.querySelector("#records-caption ~ thead button").click();
          document.getElementById("task").dispatchEvent(new Event("change"));
          return performance.now() - started;
        }"""
    )
    assert milliseconds < 3000
