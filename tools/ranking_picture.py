"""Draw docs/ranking.png: soft ranks, masks and their gradients as one value passes the others.

Run `python -m tools.ranking_picture` after a change of the operators.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from reloss.ranking import soft_rank, soft_top_k_mask

OTHERS = torch.tensor([-1.5, -0.5, 0.0, 1.0, 1.3], dtype=torch.float64)
TEMPERATURES, STEEPNESSES = (0.03, 0.1, 0.3), (30.0, 5.0, 2.0)
PANELS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "soft_rank laplace": {
        f"temperature {t}": partial(soft_rank, method="laplace", temperature=t) for t in TEMPERATURES
    },
    "soft_rank pairwise": {
        f"temperature {t}": partial(soft_rank, method="pairwise", temperature=t) for t in TEMPERATURES
    },
    "soft_rank bitonic": {f"steepness {s}": partial(soft_rank, steepness=s) for s in STEEPNESSES},
    "soft_top_k_mask laplace, k = 2": {
        f"temperature {t}": partial(soft_top_k_mask, k=2, temperature=t) for t in TEMPERATURES
    },
}


def picture() -> Figure:
    """Return the figure: above the result of the moving value, below its derivative in this value."""
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    axes = figure.subplots(2, len(PANELS), sharex=True)
    moving = torch.linspace(-2, 2, 401, dtype=torch.float64)
    for column, (title, operators) in enumerate(PANELS.items()):
        for label, operator in operators.items():
            x = moving.clone().requires_grad_()
            result = operator(torch.cat((x[:, None], OTHERS.expand(len(x), -1)), -1))[:, 0]
            (derivative,) = torch.autograd.grad(result.sum(), x)
            axes[0][column].plot(moving, result.detach(), label=label)
            axes[1][column].plot(moving, derivative.clamp(max=10), label=label)
        axes[0][column].set(title=title)
        axes[0][column].legend(fontsize=8)
        axes[1][column].set(xlabel="the moving value; dots: the others", ylabel="derivative" if column == 0 else "")
        for axis in axes[:, column]:
            axis.plot(OTHERS, torch.zeros(len(OTHERS)), "k.")
    return figure


if __name__ == "__main__":
    picture().savefig(Path(__file__).parents[1] / "docs" / "ranking.png", dpi=70)
