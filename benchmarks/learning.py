"""Time of one step of fitting a surrogate, compared with a plain loop over the items: `make bench-learning`.

A step draws 256 items of 128 examples with 100 classes from a bank, measures their accuracy, and takes one optimiser
step on minus the soft Spearman correlation plus the gradient penalty. The loop computes the same objective on items of
the same sampler, but one item at a time, with gradients by autograd. The table shows the relative difference of the two
in objective and gradient. Times are medians of warm runs with the device synchronised; peak memory is measured as in
`benchmarks.ranking`.

Writes learning.{csv,md} into --out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import results_folder
from benchmarks.ranking import peak_bytes, seconds
from reloss import ClassificationReLoss
from reloss.experiment import environment
from reloss.learning import LearnOptions, PredictionBank
from reloss.learning.fit import Fit
from reloss.learning.items import Items
from reloss.learning.measure import Measure
from reloss.learning.objective import correlate, rank_objective
from reloss.metrics import accuracy
from reloss.report.table import Table
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.options import FEATURES, PRESETS, Fidelity

ITEMS, EXAMPLES, CLASSES = 256, 128, 100
RECORDED_ITEMS = 640
FIDELITIES: tuple[Fidelity, ...] = ("released", "corrected")
FIELDS = ("fidelity", "step", "ms", "speedup", "peak_mib", "objective difference", "gradient difference", "note")


def record_bank(folder: Path) -> PredictionBank:
    """Return a bank of logits that improve from random to nearly always correct, as in a training run."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(folder, item_size=EXAMPLES)
    for step in range(RECORDED_ITEMS):
        targets = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
        noise = 2 * torch.randn(EXAMPLES, CLASSES, generator=generator)
        bank.append(noise + 12 * step / RECORDED_ITEMS * F.one_hot(targets, CLASSES), targets, step)
    bank.finish()
    return bank


def loop_objective(surrogate: SurrogateLoss, items: Items, options: LearnOptions) -> Tensor:
    """Return the objective, computed one item at a time. This is the reference."""
    losses, penalties, values = [], [], []
    for outputs, targets in zip(items.outputs, items.targets, strict=True):
        outputs = outputs.clone().requires_grad_()
        loss = surrogate(outputs, targets)
        (gradient,) = torch.autograd.grad(loss, outputs, create_graph=True)
        norms = gradient.norm(dim=-1) * (EXAMPLES if options.penalty == "example" else 1)
        penalties.append((norms - 1).square().mean())
        losses.append(loss)
        values.append(accuracy(outputs[None], targets[None])[0])
    correlation = correlate(torch.stack(losses), torch.stack(values), options)
    return -correlation + options.penalty_weight * torch.stack(penalties).mean()


def measure_fidelity(fidelity: Fidelity, bank: PredictionBank, device: str, runs: int) -> list[dict[str, Any]]:
    """Return one row for the loop and one for reloss, for the objective of a fidelity."""
    options = LearnOptions(fidelity=fidelity, items=ITEMS)
    torch.manual_seed(0)
    fit = Fit(ClassificationReLoss(**PRESETS[FEATURES[fidelity]]), bank, Measure(accuracy, True), options, device)

    def loop_step() -> None:
        items, _ = fit.sampler.draw()
        fit.optimizer.zero_grad(set_to_none=True)
        loop_objective(fit.surrogate, items, options).backward()
        fit.optimizer.step()

    items, metric = fit.sampler.draw()
    objective = rank_objective(fit.surrogate, items, metric, options).total
    reference = loop_objective(fit.surrogate, items, options)
    gradient, reference_gradient = (_gradient(value, fit.surrogate) for value in (objective, reference))
    objective_difference = abs(float((objective - reference).detach() / reference.detach()))
    gradient_difference = float((gradient - reference_gradient).norm() / reference_gradient.norm())
    loop = {"fidelity": fidelity, "step": "loop over the items", **_measure(loop_step, device, max(3, runs // 4))}
    step = {"fidelity": fidelity, "step": "reloss", **_measure(fit.learn_step, device, runs)}
    step["speedup"] = loop["ms"] / step["ms"]
    step["objective difference"] = f"{objective_difference:.1e}"
    step["gradient difference"] = f"{gradient_difference:.1e}"
    return [loop, step]


def _gradient(value: Tensor, surrogate: SurrogateLoss) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(surrogate.parameters()))])


def _measure(step: Callable[[], Any], device: str, runs: int) -> dict[str, Any]:
    step()
    times = [seconds(step, device) for _ in range(runs)]
    return {
        "ms": 1e3 * statistics.median(times),
        "peak_mib": peak_bytes(step, device) / 2**20,
        "note": f"median of {runs}",
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table. A missing field is an empty cell."""
    return Table(FIELDS, [[row.get(name, "") for name in FIELDS] for row in rows], digits=1)


def write(rows: list[dict[str, Any]], device: str, out: Path) -> None:
    """Write CSV and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    commit = environment.commit()  # before the tables change the working tree
    (out / "learning.csv").write_text(table_of(rows).csv() + "\n")
    name = torch.cuda.get_device_name() if device == "cuda" else environment.devices()["cpu"]
    machine = (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    lines = [
        f"# One learning step of {ITEMS} items of {EXAMPLES} examples with {CLASSES} classes",
        f"{machine}, commit {commit}, {date.today()}. Command: `make bench-learning`.",
        table_of(rows).markdown(),
    ]
    (out / "learning.md").write_text("\n\n".join(lines) + "\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="output folder (default: %(default)s)")
    parser.add_argument(
        "--runs",
        type=int,
        default=20,
        help="number of warm runs of a step; the loop gets a quarter of it (default: %(default)s)",
    )
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory() as folder:
        bank = record_bank(Path(folder) / "bank")
        rows = [row for fidelity in FIDELITIES for row in measure_fidelity(fidelity, bank, device, arguments.runs)]
    print(table_of(rows).plain())
    write(rows, device, arguments.out)


if __name__ == "__main__":
    main()
