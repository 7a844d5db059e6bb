import json

import pytest
from small import DIGITS

from reloss.experiment.config import to_yaml
from reloss.experiment.records import read_runs
from reloss.experiment.settings import override
from reloss.experiment.task import find_experiment, tasks
from reloss.report.published import read_published
from reloss.report.row_status import RowKind, RowStatus
from reloss.report.task_table import task_rows, task_table
from reloss.runtime.files import write_json

W48 = "pose/coco_hrnet_w48_dark_384x288"


def surrogate(spearman, ordinary):
    return {"surrogate": {"spearman": spearman, "spearman_ordinary": ordinary}}


def read_rows(runs, task="classification"):
    return task_rows(tasks()[task], read_runs(runs))


def digits_rows(runs, loss):
    return [row for row in read_rows(runs) if (row.experiment, row.loss) == (DIGITS, loss)]


def texts(row):
    """The texts of a row by header; a table without a published number lacks its column."""
    table = task_table([row])
    (cells,) = table.texts()
    return {"published": row.published, **dict(zip(table.headers, cells, strict=True))}


def digits_row(runs, loss):
    (row,) = digits_rows(runs, loss)
    return texts(row)


def test_every_experiment_and_loss_has_a_row_and_an_empty_one_has_a_reason(tmp_path):
    rows = read_rows(tmp_path)
    experiments = tasks()["classification"].experiments
    assert [(row.experiment, row.loss) for row in rows] == [
        (name, loss) for name, make in experiments.items() for loss in make().losses
    ]
    for row in rows:
        shown = texts(row)
        for header in ("ours, %", "error, %", "difference to baseline"):
            assert shown[header] == "not run"
        assert shown["status"] == "not run (no record)"
        assert shown["n"] == "0"
        assert shown["record"] == "none"
        assert shown["command"] == f"`reloss run {row.experiment} --loss {row.loss} --seed 0`"
        assert all(shown.values())


def test_an_experiment_that_is_smaller_than_the_papers_is_reduced(tmp_path):
    name = "pose/lsp_resnet18"
    summary = {"status": "finished", "experiment": name, "loss": "mse", "settings": ["train.lr=0.1"], "seed": 0}
    folder = tmp_path / name / "mse@train.lr=0.1" / "seed0"
    write_json(folder / "summary.json", {**summary, "protocol": "p", "scores": {"PCK": 0.25}})
    write_json(folder / "environment.json", {"commit": "abc", "command": f"reloss run {name}"})
    (row,) = (row for row in read_rows(tmp_path, "pose") if row.records)
    assert row.status.kind is RowKind.REDUCED
    assert row.status.note.startswith("800 persons of LSP, ")
    assert row.status.note.endswith(" train.lr=0.1")
    assert texts(row)["status"] == f"reduced: {row.status.note}"


def test_a_published_number_that_our_runs_cannot_match_has_its_own_row(tmp_path):
    rows = [row for row in read_rows(tmp_path, "pose") if (row.experiment, row.loss) == (W48, "reloss")]
    ours, theirs = map(texts, rows)
    assert (ours["published"], ours["ours, %"]) == ("none", "not run")
    assert theirs["published"] == "76.4 (ReLoss repository, COCO test-dev)"
    reasons = {theirs[header] for header in ("ours, %", "error, %", "difference to baseline")}
    assert reasons == {"needs the COCO server"}
    assert theirs["status"] == "not run (needs the COCO server)"


def test_published_numbers_are_shown_next_to_ours(tmp_path):
    published = {(row.experiment, row.loss): row.published for row in read_rows(tmp_path)}
    assert published["classification/imagenet_resnet50", "ce"].startswith("76.13 (torchvision")
    assert published["classification/imagenet_resnet50", "reloss"] == "unverified: value not recorded"
    assert published[DIGITS, "ce"] == "none"


def test_mean_deviation_and_difference(tmp_path, write_summary):
    for seed, (ordinary, learned) in enumerate([(0.90, 0.93), (0.92, 0.94), (0.94, 0.95)]):
        write_summary("ce", seed, ordinary)
        write_summary("reloss", seed, learned, **surrogate(0.987, 0.765))
    baseline, ours = digits_row(tmp_path, "ce"), digits_row(tmp_path, "reloss")
    assert (baseline["ours, %"], baseline["error, %"], baseline["n"]) == ("92.00 ± 2.00", "8.00 ± 2.00", "3")
    assert (ours["ours, %"], ours["error, %"], ours["n"]) == ("94.00 ± 1.00", "6.00 ± 1.00", "3")
    assert baseline["difference to baseline"] == "is the baseline"
    assert ours["difference to baseline"] == "+2.00 [-0.48, +4.48]"  # 2 ± 4.3027 x 1 / sqrt(3)
    assert (baseline["Spearman"], ours["Spearman"]) == ("0.765", "0.987")
    assert ours["commit"] == "abc0, abc1, abc2"
    assert ours["command"] == f"`reloss run {DIGITS} --loss reloss --seed 0`"
    assert ours["record"] == ", ".join(f"{DIGITS}/reloss/seed{seed}" for seed in range(3))
    assert ours["status"] == "not in the paper"


def test_an_ordinary_loss_takes_its_ranking_from_a_fit_with_the_same_settings(tmp_path, write_summary):
    for settings, ordinary in (((), 0.7), (("train.init=baseline",), 0.8), (("train.lr=0.1",), 0.9)):
        write_summary("reloss", 0, settings=settings, **surrogate(0.95, ordinary))
    for settings in ((), ("train.init=baseline",), ("train.lr=0.5",)):
        write_summary("ce", 0, settings=settings)
    spearman = {row.settings: row.spearman for row in digits_rows(tmp_path, "ce")}
    assert spearman[()] == 0.7
    assert spearman[("train.init=baseline",)] == 0.8
    assert spearman[("train.lr=0.5",)] in (
        0.7,
        0.8,
        0.9,
    )  # no learned loss has these settings: any fit with the same protocol


def test_difference_is_paired_by_seed(tmp_path, write_summary):
    write_summary("ce", 0, 0.5)
    write_summary("ce", 1, 0.9)
    write_summary("reloss", 1, 0.8)
    write_summary("reloss", 2, 0.1)
    (row,) = digits_rows(tmp_path, "reloss")
    assert row.difference == pytest.approx((-10.0, None, None, 1))
    assert texts(row)["difference to baseline"] == "-10.00 (one seed)"


def test_difference_is_taken_under_one_protocol_only(tmp_path, write_summary):
    write_summary("ce", 0, 0.9)
    write_summary("ce", 0, 0.6, settings=("train.epochs=1",), protocol="short")
    write_summary("reloss", 0, 0.7, settings=("train.epochs=1", "train.lr=1"), protocol="short")
    write_summary("reloss", 0, 0.8, settings=("train.epochs=9",), protocol="long")
    write_summary("reloss", 0, 0.95)
    differences = {row.settings: row.difference for row in digits_rows(tmp_path, "reloss")}
    assert differences[("train.epochs=1", "train.lr=1")].mean == pytest.approx(10)
    assert differences[("train.epochs=9",)] is None
    assert differences[()].mean == pytest.approx(5)


@pytest.mark.parametrize("measured", [{}, surrogate(0.9, 0.8)])
def test_a_learned_loss_without_baseline_is_not_called_the_baseline(tmp_path, write_summary, measured):
    write_summary("reloss", 0, 0.7, **measured)
    assert digits_row(tmp_path, "reloss")["difference to baseline"] == "no paired seed"
    assert digits_row(tmp_path, "reloss")["Spearman"] == ("0.900" if measured else "not measured")


def test_a_baseline_alone_is_the_baseline(tmp_path, write_summary):
    write_summary("ce", 0, 0.7)
    assert digits_row(tmp_path, "ce")["difference to baseline"] == "is the baseline"
    assert digits_row(tmp_path, "ce")["ours, %"] == "70.00"


def test_the_baseline_of_several_is_the_best_on_the_validation_split(tmp_path, write_summary):
    for rate, validation, test in ((0.1, 0.5, 0.6), (0.2, 0.8, 0.5), (0.4, 0.7, 0.9)):
        scores = {"accuracy": test, "validation_accuracy": validation}
        write_summary("ce", 0, settings=(f"train.lr={rate}",), scores=scores)
    write_summary("reloss", 0, 0.55)
    differences = [texts(row)["difference to baseline"] for row in digits_rows(tmp_path, "ce")]
    assert differences == ["+10.00 (one seed), to lr=0.2", "is the baseline", "+40.00 (one seed), to lr=0.2"]
    assert digits_row(tmp_path, "reloss")["difference to baseline"] == "+5.00 (one seed), to lr=0.2"


def test_fine_tuned_runs_are_compared_with_fine_tuned_runs(tmp_path, write_summary):
    tuned = ("train.init=baseline",)
    write_summary("ce", 0, 0.6)
    write_summary("ce", 0, 0.8, settings=tuned)
    write_summary("reloss", 0, 0.65)
    write_summary("reloss", 0, 0.83, settings=tuned)
    write_summary("approx", 0, 0.9, settings=(*tuned, "train.lr=0.5"))
    differences = {
        loss: [texts(row)["difference to baseline"] for row in digits_rows(tmp_path, loss)]
        for loss in ("ce", "reloss", "approx")
    }
    assert differences["ce"] == ["is the baseline", "is the baseline"]
    assert differences["reloss"] == ["+5.00 (one seed)", "+3.00 (one seed)"]
    assert differences["approx"] == ["+10.00 (one seed), to lr=0.05"]


def test_a_fine_tuned_run_is_not_compared_with_one_from_scratch(tmp_path, write_summary):
    write_summary("ce", 0, 0.6)
    write_summary("reloss", 0, 0.83, settings=("train.init=baseline",))
    assert digits_row(tmp_path, "reloss")["difference to baseline"] == "no paired seed"


def test_unfinished_runs_do_not_count(tmp_path, write_summary):
    write_summary("ce", 0, 0.7)
    write_summary("ce", 1, status="failed", cause="no disk")
    write_summary("reloss", 0, status="interrupted")
    baseline, ours = digits_row(tmp_path, "ce"), digits_row(tmp_path, "reloss")
    assert (baseline["ours, %"], baseline["n"]) == ("70.00", "1")
    assert baseline["status"] == "not in the paper; seed 1 failed: no disk"
    assert ours["ours, %"] == ours["difference to baseline"] == "not finished"
    assert ours["status"] == "not run (seed 0 interrupted)"


def test_changed_settings_are_marked_reduced(tmp_path, write_summary):
    write_summary("ce", 0, 0.7, settings=("data.per_class=5", "train.epochs=1"))
    assert digits_row(tmp_path, "ce")["status"] == "reduced: data.per_class=5 train.epochs=1"


def test_a_run_whose_experiment_has_changed_since_is_marked(tmp_path, write_summary):
    for loss in ("ce", "reloss"):
        write_summary(loss, 0, 0.7, settings=("train.epochs=1",))
        config = override(find_experiment(DIGITS)[1], ["train.epochs=1", "train.lr=0.4", "learn.steps=7"])
        (tmp_path / DIGITS / f"{loss}@train.epochs=1" / "seed0" / "config.yaml").write_text(to_yaml(config))
    (ordinary,), (learned,) = digits_rows(tmp_path, "ce"), digits_rows(tmp_path, "reloss")
    assert ordinary.status.remarks == ("run with train.lr=0.4, which the experiment has changed since",)
    assert learned.status.remarks == ("run with learn.steps=7 train.lr=0.4, which the experiment has changed since",)
    assert str(ordinary.status) == f"reduced: train.epochs=1; {ordinary.status.remarks[0]}"
    (tmp_path / DIGITS / "ce@train.epochs=1" / "seed0" / "config.yaml").write_text("{")
    (damaged,) = digits_rows(tmp_path, "ce")
    assert damaged.status.remarks == ("its config cannot be read",)


W32 = "pose/coco_hrnet_w32_256x192"


@pytest.mark.parametrize(
    ("scores", "settings", "status"),
    [
        ([0.7475, 0.748, 0.7485], (), "reproduced"),  # 74.80 ± 0.12
        (
            [0.744, 0.746, 0.750],  # 74.67 ± 0.76 contains 74.8, and much else
            (),
            "undecided: [73.91, 75.43] is not within 0.2 points of the published value",
        ),
        ([0.748, 0.748], (), "undecided: 2 of 3 seeds"),
        ([0.740, 0.741, 0.742], (), "not reproduced: below the published value"),
        ([0.755, 0.756, 0.757], (), "higher than published"),
        ([0.9, 0.91], ("train.epochs=9",), "reduced: train.epochs=9"),
    ],
)
def test_reproduced_means_that_the_whole_interval_is_near_the_published_value(tmp_path, scores, settings, status):
    for seed, score in enumerate(scores):
        folder = tmp_path / W32 / ("reloss@" + ",".join(settings) if settings else "reloss") / f"seed{seed}"
        facts = {"experiment": W32, "loss": "reloss", "settings": list(settings), "seed": seed, "protocol": "p"}
        write_json(folder / "summary.json", {"status": "finished", "scores": {"AP": score}, **facts})
    (row,) = [row for row in read_rows(tmp_path, "pose") if row.records]
    assert row.published == "74.8 (ReLoss repository, COCO val)"
    assert str(row.status) == status


def test_a_column_without_any_verified_number_is_not_shown(tmp_path):
    assert "published" in task_table(read_rows(tmp_path, "pose")).headers
    table = task_table(read_rows(tmp_path, "nmt"))
    assert "published" not in table.headers
    assert {row["published_value"] for row in table.data()} == {None}


def test_fewer_seeds_than_in_the_published_mean_are_reduced(tmp_path, monkeypatch):
    published = read_published(tasks()["pose"].folder / "published.yaml")
    more = [entry.model_copy(update={"seeds": 3}) for entry in published]
    monkeypatch.setattr("reloss.report.task_table.read_published", lambda path: more)
    facts = {"experiment": W32, "loss": "reloss", "settings": [], "seed": 0, "protocol": "p"}
    scores = {"scores": {"AP": 0.9}}
    write_json(tmp_path / W32 / "reloss/seed0/summary.json", {"status": "finished", **scores, **facts})
    (row,) = [row for row in read_rows(tmp_path, "pose") if row.records]
    assert row.status == RowStatus(RowKind.REDUCED, "1 of 3 seeds")


def test_json_holds_the_numbers(tmp_path, write_summary):
    write_summary("ce", 0, 0.71)
    first, *_, last = json.loads(task_table(digits_rows(tmp_path, "ce") + digits_rows(tmp_path, "reloss")).json())
    assert [first[name] for name in ("mean", "std", "n", "difference")] == [71.0, None, 1, None]
    assert (first["is_baseline"], first["status"]) == (True, "not in the paper")
    assert (last["mean"], last["n"], last["status"]) == (None, 0, "not run (no record)")
