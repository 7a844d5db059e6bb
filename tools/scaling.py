"""Write the tables of docs/scaling.md: what runs took, and what the paper's experiments would take: `make scaling`.

The measured table comes from the committed records. The other one is arithmetic: the floating-point operations of each
model, times the examples of its config, over an assumed speed. No GPU was measured.
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
from reloss.sweep.plan import make_plan
from tools.render_results import put_between

ROOT = Path(__file__).resolve().parent.parent
PAGE, RECORDS = ROOT / "docs" / "scaling.md", ROOT / "results" / "records" / "main"
SPEED = 30e12  # assumed operations per second of training on one GPU in half precision
SEEDS = 5
TRAINING = 3  # cost of a training step, forward and backward, in forward passes
# Experiments at the paper's size: examples per epoch and classes. The configs of translation count updates instead.
# Reading: questions as counted by the data sets' papers; a passage longer than a window is counted once.
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

# Experiments with committed records, likewise, at the size that the settings of their runs give.
SMALL: dict[str, dict[str, int]] = {
    "classification/cifar10_cnn": {"examples": 9_000, "classes": 10},
    "classification/cifar10_resnet20": {"examples": 9_000, "classes": 10},
    "mrc/squad_minilm": {"examples": 4_000, "layers": 6, "width": 384},
    "nmt/multi30k_de_en_at": {},
    "nmt/multi30k_de_en_nat": {},
    "pose/lsp_resnet18": {"examples": 800},
}


def operations(name: str, config: Any, size: dict[str, int]) -> float:
    """Return the floating-point operations of one forward pass of one example; translation: of one token."""
    if name.startswith("classification"):
        from reloss_tasks.classification.models import build

        return _count(build(config.model.name, size["classes"]), config.data.image_size)
    if name.startswith("pose"):
        return _pose_operations(config)
    if name.startswith("mrc"):
        return _encoder(size["layers"], size["width"], config.data.max_length) * config.data.max_length
    model = config.model
    stack = _encoder(model.layers, model.width, 32)
    decoder = 1.5 * stack  # a decoder layer has a second attention
    return stack + decoder + 2 * model.width * config.data.subwords  # the softmax


def _encoder(layers: int, width: int, length: int) -> float:
    """Return a Transformer encoder's operations per token.

    A layer has 12 width^2 weights, at two operations each, and attends to `length` tokens.
    """
    return layers * (24 * width**2 + 4 * length * width)


def _count(model: Any, height: int, width: int | None = None) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, height, width or height))
    return float(counter.get_total_flops())


def _pose_operations(config: Any) -> float:
    from mmpose.registry import MODELS
    from mmpose.utils import register_all_modules

    from reloss_tasks.pose.mmpose_configs import read_mmpose_config

    register_all_modules(init_default_scope=True)
    pose_config = read_mmpose_config(config.model.config)
    pose_config.model.backbone.init_cfg = None
    model = MODELS.build(pose_config.model)
    width, height = pose_config.codec.input_size
    model.forward = lambda images: model.head.forward(model.extract_feat(images))
    return _count(model, height, width)


def forwards(name: str, config: Any, size: dict[str, int]) -> float:
    """Return how many examples a run trains on, counted once per epoch; translation: how many tokens."""
    if name.startswith("nmt"):
        return float(config.train.updates * config.train.max_tokens * config.train.accumulate)
    return float(size["examples"] * config.train.epochs)


def item_bytes(name: str, config: Any, size: dict[str, int]) -> int:
    """Return the bytes of one example in a bank: outputs in float16, targets as they are."""
    if name.startswith("classification"):
        return 2 * size["classes"] + 8
    if name.startswith("pose"):
        return 2 * 2 * 17 * prod(config.surrogate_shape)
    if name.startswith("mrc"):
        return 2 * 2 * config.data.max_length + 2 * 8
    return config.recording.length * (2 + 2 * 4)


def cost_table() -> Table:
    """Return the estimated cost of each experiment at the paper's size, and of all together."""
    headers = ["experiment", "GFLOP forward", "examples a run", "GPU-hours a run", f"runs, 2 losses, {SEEDS} seeds"]
    headers += ["GPU-hours, all", "bytes an example", "bank, everything", "bank, kept"]
    rows, total_hours = [], 0.0
    for name, size in SIZES.items():
        config: Any = find_experiment(name)[1]
        forward = operations(name, config, size)
        examples = forwards(name, config, size)
        hours = TRAINING * forward * examples / SPEED / 3600
        plan = make_plan(name, [config.ordinary_loss, "reloss"], list(range(SEEDS)))
        runs = sum(job.stage == "all" and job.run.experiment == name for job in plan)
        example_bytes = item_bytes(name, config, size)
        recorded = examples / 32 if name.startswith("nmt") else examples  # a bank holds sentences of about 32 tokens
        whole, kept = recorded * example_bytes, min(config.recording.max_bytes, recorded * example_bytes)
        cost = [f"{forward / 1e9:,.3f}", f"{examples:.2e}", f"{hours:,.2f}", str(runs), f"{hours * runs:,.1f}"]
        rows.append([name, *cost, f"{example_bytes:,}", f"{whole / 1e9:,.1f} GB", f"{kept / 1e9:,.1f} GB"])
        total_hours += hours * runs
    return Table(headers, [*rows, ["all", "", "", "", "", f"{total_hours:,.0f}", "", "", ""]])


def measured_table() -> Table:
    """Return what the committed runs of each experiment took on a CPU: seconds of a run and of a fit, and the speed."""
    headers = ["experiment", "runs", "seconds a run, median", "seconds a fit, median", "hours, all runs"]
    headers += ["GFLOP/s reached, median"]
    run_seconds: dict[str, list[float]] = defaultdict(list)
    fit_seconds: dict[str, set[float]] = defaultdict(set)
    speeds: dict[str, list[float]] = defaultdict(list)
    for run in read_runs(RECORDS):
        if run.status == "finished" and run.wall_seconds:
            run_seconds[run.experiment].append(run.wall_seconds)
            if run.experiment in SMALL:
                speeds[run.experiment].append(speed(run, run.wall_seconds))
            if "seconds" in run.fit:  # older records lack it
                fit_seconds[run.experiment].add(run.fit["seconds"])
    rows = []
    for name, seconds in sorted(run_seconds.items()):
        fit = f"{statistics.median(fit_seconds[name]):,.0f}" if fit_seconds[name] else "not recorded"
        gflops = f"{statistics.median(speeds[name]) / 1e9:,.0f}" if speeds[name] else "not counted"
        cost = [f"{statistics.median(seconds):,.0f}", fit, f"{sum(seconds) / 3600:,.2f}", gflops]
        rows.append([name, str(len(seconds)), *cost])
    return Table(headers, rows)


def speed(run: RunRecord, seconds: float) -> float:
    """Return the operations per second of training that a run of SMALL reached; `seconds` include all its stages."""
    name = run.experiment
    config = override(find_experiment(name)[1], run.settings)
    count = TRAINING * operations(name, config, SMALL[name]) * forwards(name, config, SMALL[name])
    return float(count / seconds)


def main() -> None:
    """Write both tables into docs/scaling.md."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (("measured", measured_table()), ("cost", cost_table())):
        page = put_between(page, name, table.markdown(), "make scaling")
    write_text(PAGE, page)


if __name__ == "__main__":
    main()
