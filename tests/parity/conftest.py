"""The dense reference that the parity tests share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def dense_rank() -> Callable[..., Tensor]:
    """Return the soft ranks of diffsort: its dense permutation matrix times the places."""
    diffsort = pytest.importorskip("diffsort")

    def rank(values: Tensor, method: str = "bitonic", steepness: float = 5.0, interpolation: str = "logistic_phi"):
        n = values.shape[-1]
        network = diffsort.DiffSortNet(method, n, steepness=steepness, distribution=interpolation)
        _, permutation = network(values)
        return (permutation * torch.arange(n, dtype=values.dtype)).sum(-1)

    return rank
