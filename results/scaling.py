"""The tables of docs/scaling.md, from the committed records, the configs and the operations of each model.

`make scaling` writes them. Nothing here was measured on a GPU: hours there are operations over an assumed speed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from math import prod
from pathlib import Path
from typing import Any

from reloss.experiment.records import RunRecord, read_runs
from reloss.experiment.settings import override
from reloss.experiment.task import find_experiment
from reloss.report.table import Table
from reloss.runtime.files import write_text
from reloss.sweep.plan import phases

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "scaling.md"
SPEED = 30e12  # operations a second that a training reaches on one GPU in half precision: an assumption
SEEDS = 5
TRAINING = 3  # forward and backward together, in forward passes
# Experiments of the paper's size: examples an epoch (of translation: the updates are in the config), classes. Questions
# are those that the data sets' papers count; a passage longer than a window makes more of them.
BASE, LARGE = {"layers": 12, "width": 768}, {"layers": 24, "width": 1024}
SIZES: dict[str, dict[str, int]] = {
    **{f"classification/cifar10_resnet{depth}": {"examples": 50_000, "classes": 10} for depth in (20, 32, 56)},
    **{f"classification/cifar100_resnet{depth}": {"examples": 50_000, "classes": 100} for depth in (20, 32, 56)},
    **{
        f"classification/imagenet_{model}": {"examples": 1_281_167, "classes": 1000}
        for model in ("resnet18", "resnet50", "mobilenetv2")
    },
    **{
        f"pose/coco_{model}": {"examples": 149_813}
        for model in ("res50_256x192", "hrnet_w32_256x192", "hrnet_w48_dark_384x288")
    },
    "mrc/squad_bert_base": {"examples": 87_599, **BASE},
    "mrc/squad_roberta_base": {"examples": 87_599, **BASE},
    "mrc/squad_roberta_large": {"examples": 87_599, **LARGE},
    "mrc/squad2_bert_base": {"examples": 130_319, **BASE},
    "mrc/cmrc2018_roberta_wwm": {"examples": 10_321, **BASE},
    "mrc/drcd_roberta_wwm": {"examples": 26_936, **BASE},
    "mrc/dureader_roberta_wwm": {"examples": 14_520, **BASE},
    "nmt/wmt14_en_de_nat": {},
    "nmt/wmt14_en_de_at": {},
    "nmt/wmt16_en_ro_nat": {},
    "nmt/wmt16_en_ro_at": {},
    "nmt/iwslt14_de_en_nat": {},
    "nmt/iwslt14_de_en_at": {},
}

# Of the experiments with committed records, likewise; what their runs' settings say of the data is in here.
SMALL: dict[str, dict[str, int]] = {
    "classification/cifar10_cnn": {"examples": 9_000, "classes": 10},
    "classification/cifar10_resnet20": {"examples": 9_000, "classes": 10},
    "mrc/squad_minilm": {"examples": 4_000, "layers": 6, "width": 384},
    "nmt/multi30k_de_en_at": {},
    "nmt/multi30k_de_en_nat": {},
    "pose/lsp_resnet18": {"examples": 800},
}


def operations(name: str, config: Any, size: dict[str, int]) -> float:
    """Return the floating-point operations of one forward pass of one example (of translation: of one token)."""
    if name.startswith("classification"):
        from reloss_tasks.classification.models import build

        return _counted(build(config.model.name, size["classes"]), config.data.image_size)
    if name.startswith("pose"):
        return _pose_operations(config)
    if name.startswith("mrc"):
        return _encoder(size["layers"], size["width"], config.data.max_length) * config.data.max_length
    model = config.model
    stack = _encoder(model.layers, model.width, 32)
    return 2.5 * stack + 2 * model.width * config.data.subwords  # a decoder layer has a second attention; the softmax


def _encoder(layers: int, width: int, length: int) -> float:
    """Return a Transformer encoder's operations a token: two for each weight, 12 width^2 a layer, and attention."""
    return layers * (24 * width**2 + 4 * length * width)


def _counted(model: Any, height: int, width: int | None = None) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, height, width or height))
    return float(counter.get_total_flops())


def _pose_operations(config: Any) -> float:
    from mmpose.registry import MODELS
    from mmpose.utils import register_all_modules

    from reloss_tasks.pose.training import _read_config

    register_all_modules(init_default_scope=True)
    made = _read_config(config.model.config)
    made.model.backbone.init_cfg = None
    model = MODELS.build(made.model)
    width, height = made.codec.input_size
    model.forward = lambda images: model.head.forward(model.extract_feat(images))
    return _counted(model, height, width)


def forwards(name: str, config: Any, size: dict[str, int]) -> float:
    """Return how many examples (tokens) a run trains on."""
    if name.startswith("nmt"):
        return float(config.train.updates * config.train.max_tokens * config.train.accumulate)
    return float(size["examples"] * config.train.epochs)


def item_bytes(name: str, config: Any, size: dict[str, int]) -> int:
    """Return what one example takes in a bank: outputs in float16, targets as they are."""
    if name.startswith("classification"):
        return 2 * size["classes"] + 8
    if name.startswith("pose"):
        from reloss_tasks.pose.training import heatmap_size

        return 2 * 2 * 17 * prod(heatmap_size(config))
    if name.startswith("mrc"):
        return 2 * 2 * config.data.max_length + 2 * 8
    return config.recording.length * (2 + 2 * 4)


def cost_rows() -> list[list[str]]:
    """Return a row for each experiment of the paper's size: GPU-hours, of all of them too, and disk of its bank."""
    rows, together = [], 0.0
    for name, size in SIZES.items():
        config: Any = find_experiment(name)[1]
        count = operations(name, config, size)
        trained = forwards(name, config, size)
        hours = TRAINING * count * trained / SPEED / 3600
        plan = phases(name, [config.ordinary_loss, "reloss"], list(range(SEEDS)))
        runs = sum(cell.stage == "all" and cell.experiment == name for phase in plan for cell in phase)
        each = item_bytes(name, config, size)
        recorded = trained / 32 if name.startswith("nmt") else trained  # about 32 tokens a sentence
        kept = min(config.recording.max_bytes, recorded * each)
        whole = f"{recorded * each / 1e9:,.1f} GB"
        cost = [f"{count / 1e9:,.3f}", f"{trained:.2e}", f"{hours:,.2f}", str(runs), f"{hours * runs:,.1f}"]
        rows.append([name, *cost, f"{each:,}", whole, f"{kept / 1e9:,.1f} GB"])
        together += hours * runs
    return [*rows, ["all", "", "", "", "", f"{together:,.0f}", "", "", ""]]


def speed(run: RunRecord, seconds: float) -> float:
    """Return the operations a second that a run of SMALL reached in `seconds`, everything that it did included."""
    name = run.experiment
    config = override(find_experiment(name)[1], run.settings)
    count = TRAINING * operations(name, config, SMALL[name]) * forwards(name, config, SMALL[name])
    return float(count / seconds)


def measured_rows() -> list[list[str]]:
    """Return a row for each experiment with committed records: seconds of a run and of a fit on a CPU, and speed."""
    runs: dict[str, list[float]] = defaultdict(list)
    speeds: dict[str, list[float]] = defaultdict(list)
    fits: dict[str, set[float]] = defaultdict(set)
    for run in read_runs(HERE / "runs"):
        if run.status == "finished" and run.wall_seconds:
            runs[run.experiment].append(run.wall_seconds)
            if run.experiment in SMALL:
                speeds[run.experiment].append(speed(run, run.wall_seconds))
            if "seconds" in run.fit:  # older records lack it
                fits[run.experiment].add(run.fit["seconds"])
    rows = []
    for name, seconds in sorted(runs.items()):
        fit = f"{statistics.median(fits[name]):,.0f}" if fits[name] else "not recorded"
        reached = f"{statistics.median(speeds[name]) / 1e9:,.0f}" if speeds[name] else "not counted"
        cost = [f"{statistics.median(seconds):,.0f}", fit, f"{sum(seconds) / 3600:,.2f}"]
        rows.append([name, str(len(seconds)), *cost, reached])
    return rows


def written(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the marks called `name`."""
    begin, end = f"<!-- {name}: begin, written by `make scaling` -->", f"<!-- {name}: end -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Write both tables into docs/scaling.md."""
    page = PAGE.read_text(encoding="utf-8")
    measured = (
        *("experiment", "runs", "seconds a run, median", "seconds a fit, median", "hours, all runs"),
        "GFLOP/s reached, median",
    )
    cost = (
        *("experiment", "GFLOP forward", "examples a run", "GPU-hours a run", f"runs, 2 losses, {SEEDS} seeds"),
        *("GPU-hours, all", "bytes an example", "bank, everything", "bank, kept"),
    )
    page = written(page, "measured", Table(measured, measured_rows()).markdown())
    write_text(PAGE, written(page, "cost", Table(cost, cost_rows()).markdown()))


if __name__ == "__main__":
    main()
