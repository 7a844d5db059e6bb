"""The losses of the toy task."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from reloss.experiment.task import Run
from reloss_toy.config import ToyExperiment


def make_loss(run: Run[ToyExperiment]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of a run: (logits [B, C], targets [B]) -> scalar.

    A learned loss comes as `run.surrogate`, frozen and ready to be called.
    """
    surrogate, weight = run.surrogate, run.config.train.ordinary_weight
    if surrogate is None:
        return F.cross_entropy
    return lambda outputs, targets: surrogate(outputs, targets) + weight * F.cross_entropy(outputs, targets)
