import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from small import DIGITS

from reloss.experiment.config import override, to_yaml
from reloss.experiment.task import find_experiment, tasks
from reloss.report.published import read_published
from reloss.report.tables import HEADERS, PROVENANCE, cells, render, table
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import write_json

W48 = "pose/coco_hrnet_w48_dark_384x288"


@pytest.fixture
def write_summary(tmp_path):
    """Writes the summary and the environment of one run, as a record holds them."""

    def write(loss="ce", seed=0, accuracy=0.5, settings=(), protocol="p", status="finished", **more):
        changed = ",".join(settings).replace("/", "_")
        folder = tmp_path / DIGITS / (f"{loss}@{changed}" if changed else loss) / f"seed{seed}"
        summary = {"status": status, "experiment": DIGITS, "loss": loss, "settings": list(settings), "seed": seed}
        scores = {"accuracy": accuracy} if status == "finished" else {}
        write_json(folder / "summary.json", {**summary, "protocol": protocol, "scores": scores, **more})
        command = f"reloss run {DIGITS} --loss {loss} --seed {seed}"
        write_json(folder / "environment.json", {"commit": f"abc{seed}", "command": command})

    return write


def surrogate(spearman, ordinary):
    return {"surrogate": {"spearman": spearman, "spearman_ordinary": ordinary}}


def rows_of(tmp_path, loss):
    return [row for row in table("classification", tmp_path) if (row.experiment, row.loss) == (DIGITS, loss)]


def row_of(tmp_path, loss):
    (row,) = rows_of(tmp_path, loss)
    return dict(zip([*HEADERS, *PROVENANCE], cells(row), strict=True))


def test_what_was_not_run_says_so(tmp_path):
    rows = table("classification", tmp_path)
    experiments = tasks()["classification"].experiments
    assert [(row.experiment, row.loss) for row in rows] == [
        (name, loss) for name, make in experiments.items() for loss in make().losses
    ]
    for row in rows:
        shown = dict(zip([*HEADERS, *PROVENANCE], cells(row), strict=True))
        for header in ("ours, %", "error, %", "difference to baseline"):
            assert shown[header] == "not run"
        assert shown["status"] == "not run (no record)"
        assert shown["n"] == "0"
        assert shown["record"] == "none"
        assert shown["command"] == f"`reloss run {row.experiment} --loss {row.loss} --seed 0`"
        assert all(shown.values())


def test_an_experiment_that_is_smaller_than_the_papers_says_so(tmp_path):
    name = "pose/lsp_resnet18"
    summary = {"status": "finished", "experiment": name, "loss": "mse", "settings": ["train.lr=0.1"], "seed": 0}
    folder = tmp_path / name / "mse@train.lr=0.1" / "seed0"
    write_json(folder / "summary.json", {**summary, "protocol": "p", "scores": {"PCK": 0.25}})
    write_json(folder / "environment.json", {"commit": "abc", "command": f"reloss run {name}"})
    (row,) = (row for row in table("pose", tmp_path) if row.records)
    assert row.status.startswith("reduced: 800 persons of LSP, ")
    assert row.status.endswith(" train.lr=0.1")


def test_a_number_that_no_run_here_can_be_scored_like_has_a_row_of_its_own(tmp_path):
    rows = [row for row in table("pose", tmp_path) if (row.experiment, row.loss) == (W48, "reloss")]
    ours, theirs = (dict(zip([*HEADERS, *PROVENANCE], cells(row), strict=True)) for row in rows)
    assert (ours["published"], ours["ours, %"]) == ("none", "not run")
    assert theirs["published"] == "76.4 (ReLoss repository, COCO test-dev)"
    needed = {theirs[header] for header in ("ours, %", "error, %", "difference to baseline")}
    assert needed == {"needs the COCO server"}
    assert theirs["status"] == "not run (needs the COCO server)"


def test_published_numbers_stand_beside_ours(tmp_path):
    rows = {(row.experiment, row.loss): row.published for row in table("classification", tmp_path)}
    assert rows["classification/imagenet_resnet50", "ce"].startswith("76.13 (torchvision")
    assert rows["classification/imagenet_resnet50", "reloss"] == "unverified: value not recorded"
    assert rows[DIGITS, "ce"] == "none"


def test_mean_deviation_and_difference(tmp_path, write_summary):
    for seed, (ordinary, learned) in enumerate([(0.90, 0.93), (0.92, 0.94), (0.94, 0.95)]):
        write_summary("ce", seed, ordinary)
        write_summary("reloss", seed, learned, **surrogate(0.987, 0.765))
    baseline, ours = row_of(tmp_path, "ce"), row_of(tmp_path, "reloss")
    assert (baseline["ours, %"], baseline["error, %"], baseline["n"]) == ("92.00 ± 2.00", "8.00 ± 2.00", "3")
    assert (ours["ours, %"], ours["error, %"], ours["n"]) == ("94.00 ± 1.00", "6.00 ± 1.00", "3")
    assert baseline["difference to baseline"] == "is the baseline"
    assert ours["difference to baseline"] == "+2.00 [-0.48, +4.48]"  # 2 ± 4.3027 x 1 / sqrt(3)
    assert (baseline["Spearman"], ours["Spearman"]) == ("0.765", "0.987")
    assert ours["commit"] == "abc0, abc1, abc2"
    assert ours["command"] == f"`reloss run {DIGITS} --loss reloss --seed 0`"
    assert ours["record"] == ", ".join(f"{DIGITS}/reloss/seed{seed}" for seed in range(3))
    assert ours["status"] == "not in the paper"


def test_an_ordinary_loss_ranks_as_measured_beside_the_runs_with_its_settings(tmp_path, write_summary):
    for settings, ordinary in (((), 0.7), (("train.init=baseline",), 0.8), (("train.lr=0.1",), 0.9)):
        write_summary("reloss", 0, settings=settings, **surrogate(0.95, ordinary))
    for settings in ((), ("train.init=baseline",), ("train.lr=0.5",)):
        write_summary("ce", 0, settings=settings)
    ranked = {row.settings: row.spearman for row in rows_of(tmp_path, "ce")}
    assert ranked[()] == 0.7
    assert ranked[("train.init=baseline",)] == 0.8
    assert ranked[("train.lr=0.5",)] in (0.7, 0.8, 0.9)  # no learned loss has these: any of the same protocol


def test_difference_is_paired_by_seed(tmp_path, write_summary):
    write_summary("ce", 0, 0.5)
    write_summary("ce", 1, 0.9)
    write_summary("reloss", 1, 0.8)
    write_summary("reloss", 2, 0.1)
    (row,) = rows_of(tmp_path, "reloss")
    assert row.difference == pytest.approx((-10.0, None, None, 1))
    assert cells(row)[HEADERS.index("difference to baseline")] == "-10.00 (one seed)"


def test_difference_is_taken_under_one_protocol_only(tmp_path, write_summary):
    write_summary("ce", 0, 0.9)
    write_summary("ce", 0, 0.6, settings=("train.epochs=1",), protocol="short")
    write_summary("reloss", 0, 0.7, settings=("train.epochs=1", "train.lr=1"), protocol="short")
    write_summary("reloss", 0, 0.8, settings=("train.epochs=9",), protocol="long")
    write_summary("reloss", 0, 0.95)
    found = {row.settings: row.difference for row in rows_of(tmp_path, "reloss")}
    assert found[("train.epochs=1", "train.lr=1")].mean == pytest.approx(10)
    assert found[("train.epochs=9",)] is None
    assert found[()].mean == pytest.approx(5)


@pytest.mark.parametrize("measured", [{}, surrogate(0.9, 0.8)])
def test_a_learned_loss_without_baseline_is_not_called_the_baseline(tmp_path, write_summary, measured):
    write_summary("reloss", 0, 0.7, **measured)
    assert row_of(tmp_path, "reloss")["difference to baseline"] == "no paired seed"
    assert row_of(tmp_path, "reloss")["Spearman"] == ("0.900" if measured else "not measured")


def test_a_baseline_alone_is_the_baseline(tmp_path, write_summary):
    write_summary("ce", 0, 0.7)
    assert row_of(tmp_path, "ce")["difference to baseline"] == "is the baseline"
    assert row_of(tmp_path, "ce")["ours, %"] == "70.00"


def test_the_baseline_of_several_is_the_best_on_the_validation_split(tmp_path, write_summary):
    for rate, validation, test in ((0.1, 0.5, 0.6), (0.2, 0.8, 0.5), (0.4, 0.7, 0.9)):
        scores = {"accuracy": test, "validation_accuracy": validation}
        write_summary("ce", 0, settings=(f"train.lr={rate}",), scores=scores)
    write_summary("reloss", 0, 0.55)
    differences = [cells(row)[HEADERS.index("difference to baseline")] for row in rows_of(tmp_path, "ce")]
    assert differences == ["+10.00 (one seed), to lr=0.2", "is the baseline", "+40.00 (one seed), to lr=0.2"]
    assert row_of(tmp_path, "reloss")["difference to baseline"] == "+5.00 (one seed), to lr=0.2"


def test_what_was_fine_tuned_is_compared_with_what_was_fine_tuned(tmp_path, write_summary):
    tuned = ("train.init=baseline",)
    write_summary("ce", 0, 0.6)
    write_summary("ce", 0, 0.8, settings=tuned)
    write_summary("reloss", 0, 0.65)
    write_summary("reloss", 0, 0.83, settings=tuned)
    write_summary("approx", 0, 0.9, settings=(*tuned, "train.lr=0.5"))
    shown = HEADERS.index("difference to baseline")
    found = {loss: [cells(row)[shown] for row in rows_of(tmp_path, loss)] for loss in ("ce", "reloss", "approx")}
    assert found["ce"] == ["is the baseline", "is the baseline"]
    assert found["reloss"] == ["+5.00 (one seed)", "+3.00 (one seed)"]
    assert found["approx"] == ["+10.00 (one seed), to lr=0.05"]


def test_without_an_ordinary_loss_that_began_alike_nothing_is_compared(tmp_path, write_summary):
    write_summary("ce", 0, 0.6)
    write_summary("reloss", 0, 0.83, settings=("train.init=baseline",))
    assert row_of(tmp_path, "reloss")["difference to baseline"] == "no paired seed"


def test_unfinished_runs_do_not_count(tmp_path, write_summary):
    write_summary("ce", 0, 0.7)
    write_summary("ce", 1, status="failed", cause="no disk")
    write_summary("reloss", 0, status="interrupted")
    baseline, ours = row_of(tmp_path, "ce"), row_of(tmp_path, "reloss")
    assert (baseline["ours, %"], baseline["n"]) == ("70.00", "1")
    assert baseline["status"] == "not in the paper; seed 1 failed: no disk"
    assert ours["ours, %"] == ours["difference to baseline"] == "not finished"
    assert ours["status"] == "not run (seed 0 interrupted)"


def test_changed_settings_are_marked_reduced(tmp_path, write_summary):
    write_summary("ce", 0, 0.7, settings=("data.per_class=5", "train.epochs=1"))
    assert row_of(tmp_path, "ce")["status"] == "reduced: data.per_class=5 train.epochs=1"


def test_what_an_experiment_says_otherwise_today_is_said(tmp_path, write_summary):
    for loss in ("ce", "reloss"):
        write_summary(loss, 0, 0.7, settings=("train.epochs=1",))
        config = override(find_experiment(DIGITS)[1], ["train.epochs=1", "train.lr=0.4", "learn.steps=7"])
        (tmp_path / DIGITS / f"{loss}@train.epochs=1" / "seed0" / "config.yaml").write_text(to_yaml(config))
    usual = "reduced: train.epochs=1; made with"
    assert row_of(tmp_path, "ce")["status"] == f"{usual} train.lr=0.4, which the experiment no longer says"
    learned = row_of(tmp_path, "reloss")["status"]
    assert learned == f"{usual} learn.steps=7 train.lr=0.4, which the experiment no longer says"
    (tmp_path / DIGITS / "ce@train.epochs=1" / "seed0" / "config.yaml").write_text("{")
    assert "made with a config.yaml that cannot be read" in row_of(tmp_path, "ce")["status"]


@pytest.fixture
def odd_rows(tmp_path, write_summary):
    write_summary("ce", 0, 0.7, settings=("train.gamma=a|b_c%~^&#${}\\",))
    write_summary("ce", 0, 0.71)
    return [row for row in table("classification", tmp_path) if row.experiment == DIGITS]


def test_markdown_has_a_cell_for_each_header_whatever_the_text(odd_rows):
    lines = [line for line in render(odd_rows, "md").splitlines() if line.startswith("|")]
    columns = len(HEADERS) + len(PROVENANCE)
    assert len(lines) == 2 + len(odd_rows)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {columns + 2}
    assert r"a\|b_c" in lines[3]


def test_csv_is_read_back(odd_rows):
    rows = list(csv.reader(io.StringIO(render(odd_rows, "csv"))))
    assert rows == [[*HEADERS, *PROVENANCE], *(cells(row) for row in odd_rows)]
    assert "a|b_c" in rows[2][HEADERS.index("status")]


def test_latex_is_escaped(odd_rows):
    lines = render(odd_rows, "tex").splitlines()
    assert lines[0] == r"% \usepackage{booktabs}"
    assert lines[2] == rf"\begin{{tabular}}{{{'l' * len(HEADERS)}}}"
    assert lines[-1] == r"\end{tabular}"
    body = [line for line in lines if r" \\" in line]
    assert len(body) == 1 + len(odd_rows)
    shown = [line.partition(r" \\")[0] for line in body]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in shown} == {len(HEADERS) - 1}
    assert body[0].startswith(r"experiment & loss & metric & published & ours, \% & error, \%")
    assert r"a\textbar{}b\_c\%\textasciitilde{}\textasciicircum{}\&\#\$\{\}\textbackslash{}" in body[2]
    assert body[1].endswith(
        f"% command: `reloss run {DIGITS} --loss ce --seed 0`; commit: abc0; record: {DIGITS}/ce/seed0"
    )


def test_latex_shows_the_deviation(tmp_path, write_summary):
    write_summary("ce", 0, 0.5)
    write_summary("ce", 1, 0.7)
    assert r"60.00 $\pm$ 14.14" in render(rows_of(tmp_path, "ce"), "tex")


def test_json_holds_the_numbers(odd_rows):
    rows = json.loads(render(odd_rows, "json"))
    assert len(rows) == len(odd_rows)
    assert rows[0]["ours"] == [71.0, None, 1]
    assert rows[0]["is_baseline"] is True
    assert rows[-1]["ours"] is None


def test_unknown_format_and_table(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'html'; valid: md, csv, tex, json"):
        render([], "html")
    with pytest.raises(UsageError, match="did you mean classification"):
        table("clasification", tmp_path)


W32 = "pose/coco_hrnet_w32_256x192"


@pytest.mark.parametrize(
    ("scores", "settings", "status"),
    [
        ([0.744, 0.746, 0.750], (), "reproduced"),  # the interval 74.67 ± 0.76 contains 74.8
        ([0.751], (), "reproduced"),
        ([0.747], (), "not reproduced: below the published value"),
        ([0.740, 0.741, 0.742], (), "not reproduced: below the published value"),
        ([0.9, 0.91], ("train.epochs=9",), "reduced: train.epochs=9"),
    ],
)
def test_reproduced_is_what_contains_or_exceeds_the_published_value(tmp_path, scores, settings, status):
    for seed, score in enumerate(scores):
        folder = tmp_path / W32 / ("reloss@" + ",".join(settings) if settings else "reloss") / f"seed{seed}"
        facts = {"experiment": W32, "loss": "reloss", "settings": list(settings), "seed": seed, "protocol": "p"}
        write_json(folder / "summary.json", {"status": "finished", "scores": {"AP": score}, **facts})
    (row,) = [row for row in table("pose", tmp_path) if row.records]
    assert row.published == "74.8 (ReLoss repository, COCO val)"
    assert row.status == status


def test_fewer_seeds_than_the_published_value_is_the_mean_of_is_reduced(tmp_path, monkeypatch):
    published = read_published(tasks()["pose"].folder / "published.yaml")
    more = [entry.model_copy(update={"seeds": 3}) for entry in published]
    monkeypatch.setattr("reloss.report.tables.read_published", lambda path: more)
    facts = {"experiment": W32, "loss": "reloss", "settings": [], "seed": 0, "protocol": "p"}
    scores = {"scores": {"AP": 0.9}}
    write_json(tmp_path / W32 / "reloss/seed0/summary.json", {"status": "finished", **scores, **facts})
    (row,) = [row for row in table("pose", tmp_path) if row.records]
    assert row.status == "reduced: 1 of 3 seeds"


def test_a_cell_of_several_lines_stays_in_its_row(tmp_path, write_summary):
    write_summary("ce", 0, status="failed", cause="first\nsecond 中文 100 %")
    rows = rows_of(tmp_path, "ce")
    assert "| not run (seed 0 failed: first second 中文 100 %) |" in render(rows, "md")
    assert r"first second ?? 100 \%" in render(rows, "tex")


ODD_SCORES = json.dumps(
    {"status": "finished", "experiment": DIGITS, "loss": "ce", "settings": [], "seed": 0, "protocol": "p"}
    | {"scores": {"accuracy": "high"}}
)


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"status": "finished"}', ODD_SCORES])
def test_a_damaged_summary_is_named(tmp_path, write_summary, content):
    write_summary("ce", 0, 0.5)
    path = tmp_path / DIGITS / "ce" / "seed0" / "summary.json"
    path.write_text(content)
    with pytest.raises(RelossError, match=re.escape(str(path))):
        table("classification", tmp_path)


PDFLATEX = shutil.which("pdflatex")


@pytest.mark.skipif(not PDFLATEX, reason="pdflatex is not installed (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("name", ["classification", "pose", "nmt", "mrc", "ablation", "correlation"])
def test_latex_compiles(tmp_path, cli, name):
    runs = tmp_path / "runs"
    for loss, settings, cause in (("ce", [], '50 % | <a_b> #1 & ~^\\ "x" äß'), ("reloss", ["train.lr=1e-3"], "{$")):
        folder = runs / DIGITS / loss / "seed0"
        facts = {"experiment": DIGITS, "loss": loss, "settings": settings, "seed": 0, "protocol": "p"}
        write_json(folder / "summary.json", {"status": "failed", "cause": cause, "scores": {}, **facts})
    code, out, _ = cli("table", name, "--runs", runs, "--format", "tex")
    assert code == 0
    (tmp_path / "table.tex").write_text(out)
    packages = r"\usepackage{booktabs}\usepackage[paperwidth=200cm,margin=1cm]{geometry}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}\noindent\input{{table}}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    words = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["classification", "ablation", "correlation", "--tuned"])
@pytest.mark.parametrize(("format", "start"), [("md", "Left out: "), ("tex", "% Left out: "), ("json", None)])
def test_a_table_names_what_it_leaves_out(cli, tmp_path, write_summary, name, format, start):
    write_summary("ce", 0, 0.7)
    write_summary("ce", 1, 0.8)
    scores = {"accuracy": 0.9, "validation_accuracy": 0.9}
    write_summary("ce", 2, settings=("train.epochs=1",), scores=scores)
    damaged = tmp_path / DIGITS / "ce" / "seed1" / "summary.json"
    damaged.write_text('{"status"')
    words = ("classification", "--tuned", "accuracy") if name == "--tuned" else (name,)
    code, out, err = cli("table", *words, "--runs", tmp_path, "--format", format)
    assert code == 0, err
    assert f"left out: {damaged} cannot be read as JSON" in err
    last = out.splitlines()[-1]
    assert last.startswith(f"{start}{damaged} cannot be read as JSON") if start else last == "]"


def test_the_other_seeds_of_a_damaged_record_are_shown(tmp_path, write_summary):
    for seed, accuracy in enumerate((0.7, 0.8, 0.9)):
        write_summary("ce", seed, accuracy)
    (tmp_path / DIGITS / "ce" / "seed1" / "summary.json").write_text("null")
    damaged = []
    (row,) = [row for row in table("classification", tmp_path, damaged) if (row.experiment, row.loss) == (DIGITS, "ce")]
    assert (row.ours.n, row.ours.mean) == (2, pytest.approx(80))
    assert len(damaged) == 1
