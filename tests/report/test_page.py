import base64
import hashlib
import html
import io
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image
from records import HOSTILE, png, record
from small import DIGITS
from waiting import wait_for

from reloss.experiment.records import read_records, read_runs
from reloss.experiment.task import find_experiment, tasks
from reloss.report import sections
from reloss.report.colours import RIVALS, ROLES, loss_colour
from reloss.report.forest import forest
from reloss.report.images import MAX_SIDE, embed_png
from reloss.report.page import TEMPLATES, page, watch_report
from reloss.report.sections import Collector, experiment_section
from reloss.report.statistics import Difference, Side
from reloss.report.task_table import task_rows
from reloss.runtime.errors import RelossError

VOID = {"meta", "link", "input", "img", "br", "wbr", "line", "path", "circle", "svg"}


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text; an end tag without a start tag is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def text(report_runs):
    return page(report_runs)


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_the_page_is_well_formed_and_loads_nothing(text, parsed):
    assert parsed.open == []
    assert all(attributes["src"].startswith("data:image/webp;base64,") for attributes in parsed.all("img"))
    assert parsed.all("link", "iframe", "object", "base") == []
    assert not any("src" in attributes for attributes in parsed.all("script"))
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert {attributes["href"].removeprefix("#") for attributes in parsed.all("a")} <= ids
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_policy_allows_this_style_and_script_alone(text, parsed):
    (policy,) = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any("style" in attributes or "onclick" in attributes for _, attributes in parsed.elements)


def test_the_contents_of_a_record_are_escaped(text, parsed):
    assert "window.hostile" in " ".join(parsed.texts)
    assert "<script>window.hostile" not in text
    assert len(parsed.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in parsed.elements)


def test_tables_and_charts_are_accessible(parsed):
    tables = parsed.all("table")
    assert len(tables) >= 5
    assert len(parsed.all("caption")) == len(tables)
    assert all("scope" in attributes for attributes in parsed.all("th"))
    assert all(attributes.get("alt") for attributes in parsed.all("img"))
    charts = [attributes for attributes in parsed.all("svg") if attributes.get("aria-hidden") != "true"]
    assert len([chart for chart in charts if chart.get("role") == "img" and chart.get("aria-label")]) >= 5
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes["aria-labelledby"] for _, attributes in parsed.elements if "aria-labelledby" in attributes}
    assert named <= set(ids)


def test_damaged_and_unknown_records_are_named(report_runs, text):
    notice = text[text.index("What is missing on this page") : text.index("</section>")]
    for name in (
        "multi30k_de_en_nat/nll/seed0/summary.json", "classification/gone_cnn/ce/seed0: no table shows this record",
        "lsp_resnet18/mse/seed0/broken.png", "squad_minilm/reloss/seed0/examples.json",
        "squad_minilm/reloss/seed0/metrics.jsonl",
    ):  # fmt: skip
        assert name in notice


def test_numbers_equal_those_of_the_tables(report_runs, parsed):
    words = " ".join(parsed.texts)
    for shown in (
        "92.00 ±\u00a02.00",
        "94.00 ±\u00a01.00",
        "is the baseline",
        "not in the paper",
        "too close to tell in 1 of",
    ):
        assert shown in words
    assert "+2.00 [-0.48, +4.48]".replace(", ", ",\u00a0") in words
    assert "ce against accuracy, ρ = 0.800" in words
    assert "reloss 012345 against accuracy, ρ = 0.900" in words
    assert f"{DIGITS}/reloss/seed2" in words
    alts = [attributes["aria-label"] for attributes in parsed.all("svg") if attributes.get("role") == "img"]
    assert any("ce (3 seeds) ends at 92.00 %; reloss (3 seeds) ends at 94.00 %" in alt for alt in alts)


def test_examples_are_cut_and_images_have_captions(text, parsed):
    assert text.count("Zürich 中文") == 7  # six wrong ones of nine, and the right one
    assert "one / two" in text
    (embedded,) = parsed.all("img")
    assert embedded["alt"] == "Persons with their joints (pose/lsp_resnet18/mse/seed0/persons.png)"
    image = Image.open(io.BytesIO(base64.b64decode(embedded["src"].partition(",")[2])))
    assert (image.format, image.size) == ("WEBP", (60, 40))


def test_an_empty_folder_names_the_first_command(tmp_path):
    text = page(tmp_path)
    assert "No records yet" in text
    assert "reloss demo" in text
    assert "What is missing" not in text
    assert Parsed(text).open == []


def test_records_without_metrics_have_tables_but_no_charts(report_runs, tmp_path):
    shutil.copytree(report_runs / DIGITS / "ce", tmp_path / DIGITS / "ce")
    for path in tmp_path.rglob("metrics.jsonl"):
        path.unlink()
    text = page(tmp_path)
    assert "92.00 ±\u00a02.00" in text
    assert "No charts: these records hold neither metrics.jsonl" in text


@pytest.mark.parametrize("name", ["surrogate.json", "picture.json", "history.jsonl"])
@pytest.mark.parametrize("content", ["{", "[]", '{"fit": {}, "items": 3}'])
def test_damaged_surrogates_do_not_stop_the_page(report_runs, tmp_path, name, content):
    shutil.copytree(report_runs / DIGITS, tmp_path / DIGITS)
    (tmp_path / DIGITS / "surrogates" / "0123456789ab" / name).write_text(content)
    text = page(tmp_path)
    assert "94.00 ±\u00a01.00" in text
    assert Parsed(text).open == []


def test_a_large_sweep_fits_on_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "MAX_IMAGE_BYTES", 3000)
    for seed in range(20):
        for rate in range(10):
            folder = record(tmp_path, DIGITS, "ce", seed, 0.9, settings=(f"train.lr={rate}",))
            if seed == 0:
                noise = Image.effect_noise((300, 200), 80)
                noise.save(folder / "noise.png")
    text = page(tmp_path)
    assert len(text) < 1_500_000
    assert "The page has no room for" in text
    assert "4 more groups of runs are in the table only" in text


def test_an_unfinished_run_is_drawn_only_without_a_finished_one(tmp_path):
    record(tmp_path, DIGITS, "ce", 0, 0.8, status="interrupted")
    assert "ce (1 seed) ends at 30.00 %" in page(tmp_path)
    record(tmp_path, DIGITS, "ce", 1, 0.8)
    assert "ce (1 seed) ends at 80.00 %" in page(tmp_path)


def test_differences_share_a_scale_and_wide_intervals_are_cut(report_runs):
    (row,) = [
        row
        for row in task_rows(tasks()["classification"], read_runs(report_runs, []))
        if row.experiment == DIGITS and row.loss == "reloss" and not row.settings
    ]

    differences = [
        *(Difference(2, 1, 3, 3), Difference(-2, -3, -1, 3), Difference(0, -3, 3, 3)),
        *(Difference(0.5, None, None, 1), Difference(0, -30, 30, 3), Difference(1, -1, 3, 3)),
    ]
    drawn = forest([("classification", replace(row, difference=difference)) for difference in differences])
    assert [len(drawn.learned[side]) for side in Side] == [1, 1, 3, 1]
    assert drawn.compared == 5
    assert drawn.limit == 3
    first, *_, wide, _ = drawn.intervals
    assert (first.low, first.mean, first.high) == pytest.approx((50 + 50 / 3, 50 + 100 / 3, 100), abs=0.01)
    assert wide.cut == (True, True)
    assert (wide.low, wide.high) == (0, 100)
    assert forest([]).intervals == []


def test_rivals_are_in_the_forest_and_not_in_the_verdict(tmp_path):
    for seed, score in enumerate((0.80, 0.81, 0.82)):
        record(tmp_path, DIGITS, "ce", seed, score)
        record(tmp_path, DIGITS, "label_smoothing", seed, score + 0.05)
        record(tmp_path, DIGITS, "ce", seed, score - 0.05, settings=("train.epochs=3",))
    rows = [("classification", row) for row in task_rows(tasks()["classification"], read_runs(tmp_path, []))]
    drawn = forest(rows)
    assert [interval.row.loss for interval in drawn.intervals] == ["label_smoothing"]
    assert drawn.compared == 0
    assert "Nothing to compare yet" in page(tmp_path)


def test_the_page_opens_with_the_verdict(tmp_path):
    for seed, score in enumerate((0.80, 0.81, 0.82)):
        record(tmp_path, DIGITS, "ce", seed, score)
        record(tmp_path, DIGITS, "reloss", seed, score + 0.05 + 0.001 * seed)
        record(tmp_path, DIGITS, "reloss", seed, score - 0.05, settings=("learn.steps=7",))
    text = " ".join(Parsed(page(tmp_path)).texts)
    opening = " ".join(text.partition("A loss does not have to reproduce")[0].split())
    assert "the learned loss scores higher in 1 , lower in 1 and too close to tell in 0 of 2 comparisons" in opening
    assert "Higher: classification/ digits_cnn, accuracy +5.10 [+4.85, +5.35]" in opening
    assert "Lower: classification/ digits_cnn (learn. steps= 7), accuracy -5.00 [-5.00, -5.00]" in opening


def test_a_loss_has_one_colour_in_all_charts(report_runs, parsed):
    config = find_experiment(DIGITS)[1]
    assert [loss_colour(config, loss) for loss in ("ce", "reloss", "approx", "expected")] == [0, 1, 2, 3]
    assert loss_colour(find_experiment("nmt/multi30k_de_en_at")[1], "label_smoothing") == 0
    rivals = [loss for loss in find_experiment("classification/digits8_cnn")[1].losses if loss not in ROLES]
    assert len({loss_colour(config, loss) for loss in rivals}) == len(rivals)
    css = (TEMPLATES / "report.css").read_text()
    assert all(css.count(f"--colour{number}: #") == 2 for number in range(len(ROLES) + RIVALS))  # light and dark
    section = experiment_section("classification", config, "", Collector(read_records(report_runs, []), []))
    colours = {series.name.split(" ")[0]: series.colour for chart in section.charts for series in chart.series}
    assert {name: colours[name] for name in ("ce", "reloss")} == {"ce": 0, "reloss": 1}
    training = section.charts[0]
    assert [series.dash for series in training.series] == list(range(len(training.series)))


def test_the_command_of_the_page_writes_it_again(cli, tmp_path):
    runs, out = tmp_path / "my runs", tmp_path / "a page.html"
    record(runs, DIGITS, "ce", 0, 0.9)
    cli("report", "--runs", runs, "--out", out)
    text = html.unescape(out.read_text())
    (command,) = re.findall(r"<code>(reloss report [^<]*)</code>", text)
    out.unlink()
    assert cli(*shlex.split(command)[1:])[0] == 0
    assert html.unescape(out.read_text()) == text


def test_an_ablation_has_its_table(tmp_path):
    record(tmp_path, DIGITS, "ce", 0, 0.9, scores={"accuracy": 0.9, "validation_accuracy": 0.9})
    scores = {"accuracy": 0.9, "validation_accuracy": 0.85}
    record(tmp_path, DIGITS, "reloss", 0, 0.9, settings=("learn.penalty=off",), scores=scores)
    assert '<td data-value="-5.0">-5.00 (one seed)</td>' in page(tmp_path)


def test_the_command_writes_one_file(cli, report_runs, tmp_path):
    code, out, _ = cli("report", "--runs", report_runs, "--out", tmp_path / "new" / "report.html")
    assert code == 0
    assert re.fullmatch(rf"{tmp_path}/new/report\.html \(0\.[45] MB, needs no network\)\n", out)
    assert (tmp_path / "new" / "report.html").read_text().startswith("<!doctype html>")
    assert list(tmp_path.rglob("*.tmp")) == []
    code, _, err = cli("report", "--runs", tmp_path / "none", "--out", tmp_path / "r.html")
    assert code == 2
    assert "no folder of records" in err
    code, _, err = cli("report", "--runs", report_runs, "--out", tmp_path)
    assert code == 2
    assert "cannot write" in err


def test_watching_writes_the_page_again_until_ctrl_c(tmp_path, monkeypatch):
    out, refreshes = tmp_path / "report.html", []

    def sleep(seconds):
        refreshes.append(re.findall(r'http-equiv="refresh" content="(\d+)"', out.read_text()))
        record(tmp_path / "runs", DIGITS, "ce", len(refreshes), 0.9)
        if len(refreshes) == 3:
            raise KeyboardInterrupt

    record(tmp_path / "runs", DIGITS, "ce", 0, 0.9)
    monkeypatch.setattr("reloss.report.page.time", SimpleNamespace(sleep=sleep))  # other threads sleep, too
    with pytest.raises(KeyboardInterrupt):
        watch_report(tmp_path / "runs", out, 7)
    assert refreshes == [["7"]] * 3
    text = out.read_text()
    assert "refresh" not in text.partition("<body>")[0]
    assert "4 records" in text  # the last one, too
    assert "--watch" not in text


@pytest.mark.slow
def test_ctrl_c_ends_watching_with_its_exit_code(tmp_path):
    record(tmp_path / "runs", DIGITS, "ce", 0, 0.9)
    out = tmp_path / "report.html"
    words = [sys.executable, "-m", "reloss", "report", "--runs", tmp_path / "runs", "--out", out, "--watch"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(out.exists)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out.as_uri() in err
    assert "refresh" not in out.read_text().partition("<body>")[0]


def test_images_are_scaled_down_and_unreadable_ones_named(tmp_path):
    Image.new("RGBA", (3000, 1500), (10, 20, 30, 0)).save(tmp_path / "large_one.png")
    embedded = embed_png(tmp_path / "large_one.png", "there")
    assert (embedded.width, embedded.height, embedded.alt) == (MAX_SIDE, MAX_SIDE // 2, "large one")
    (tmp_path / "odd.png").write_bytes(png(HOSTILE)[:60])
    with pytest.raises(RelossError, match=r"odd\.png cannot be read as an image"):
        embed_png(tmp_path / "odd.png", "there")
