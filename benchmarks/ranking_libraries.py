"""Soft operators of several libraries under one signature, for the benchmark of ranking.

Each library is optional. It is imported from the folder that `--peers` names, outside the locked environment. One way
to fill the folder, for what a package index offers:

    pip install --no-deps --ignore-requires-python --target FOLDER softtorch numba llvmlite pot torchopt optree \
        graphviz torchsort difftopk

A library that is missing there is a row that states so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from reloss.ranking import soft_median, soft_rank, soft_sort, soft_top_k_mask

Operator = Callable[[Tensor], Tensor]
TEMPERATURE = 0.1
SHARE = 0.1  # of the values that top k chooses, at least one


def chosen(n: int) -> int:
    """Return the k of top k for n values."""
    return max(1, round(SHARE * n))


def _reloss(device: str) -> dict[tuple[str, str], Operator]:
    operators: dict[tuple[str, str], Operator] = {
        ("rank", "reloss laplace"): lambda x: soft_rank(x, "laplace"),
        ("rank", "reloss bitonic"): lambda x: soft_rank(x, "bitonic"),
        ("rank", "reloss pairwise"): lambda x: soft_rank(x, "pairwise"),
        ("sort", "reloss laplace"): soft_sort,
        ("sort", "reloss bitonic"): lambda x: soft_sort(x, method="bitonic"),
        ("top k", "reloss laplace"): lambda x: soft_top_k_mask(x, chosen(x.shape[-1])),
        ("top k", "reloss bitonic"): lambda x: soft_top_k_mask(x, chosen(x.shape[-1]), method="bitonic"),
        ("median", "reloss laplace"): lambda x: soft_median(x, -1),
    }
    return operators


def _lapsum(device: str) -> dict[tuple[str, str], Operator]:
    from lapsum.rank.extension.soft_rank import soft_rank as rank
    from lapsum.sort.extension.soft_sort import soft_sort as sort
    from lapsum.topk.extension.soft_topk import soft_topk as top_k

    temperature = torch.tensor(TEMPERATURE)  # its backward refuses a number

    @lru_cache
    def counts(batch: int, n: int) -> Tensor:
        return torch.full((batch, 1), float(chosen(n)), device=device)

    return {
        ("rank", "LapSum"): lambda x: rank(x, temperature),
        ("sort", "LapSum"): lambda x: sort(x, TEMPERATURE),
        ("top k", "LapSum"): lambda x: top_k(x, counts(*x.shape), temperature),
    }


def _torchsort(device: str) -> dict[tuple[str, str], Operator]:
    import torchsort

    return {
        ("rank", "torchsort"): lambda x: torchsort.soft_rank(x, regularization_strength=TEMPERATURE),
        ("sort", "torchsort"): lambda x: torchsort.soft_sort(x, regularization_strength=TEMPERATURE),
    }


def _fast_soft_sort(device: str) -> dict[tuple[str, str], Operator]:
    from fast_soft_sort import pytorch_ops

    return {
        ("rank", "fast-soft-sort"): lambda x: pytorch_ops.soft_rank(x.cpu(), regularization_strength=TEMPERATURE),
        ("sort", "fast-soft-sort"): lambda x: pytorch_ops.soft_sort(x.cpu(), regularization_strength=TEMPERATURE),
    }


def _softtorch(device: str) -> dict[tuple[str, str], Operator]:
    import softtorch

    return {
        ("rank", "softtorch"): lambda x: softtorch.rank(x, dim=-1),
        ("rank", "softtorch fast_soft_sort"): lambda x: softtorch.rank(x, dim=-1, method="fast_soft_sort"),
        ("sort", "softtorch"): lambda x: softtorch.sort(x, dim=-1).values,
        ("sort", "softtorch fast_soft_sort"): lambda x: (
            softtorch.sort(x, dim=-1, method="fast_soft_sort", return_indices=False).values
        ),
        ("top k", "softtorch"): lambda x: softtorch.topk(x, chosen(x.shape[-1]), dim=-1)[1].sum(-2),
        ("median", "softtorch"): lambda x: softtorch.median(x, dim=-1).values,
    }


def _diffsort(device: str) -> dict[tuple[str, str], Operator]:
    from diffsort import DiffSortNet

    @lru_cache
    def network(n: int) -> Any:
        return DiffSortNet("bitonic", n, device=device, steepness=5.0, distribution="logistic_phi")

    return {
        ("rank", "diffsort"): lambda x: (network(x.shape[-1])(x)[1] * torch.arange(x.shape[-1], device=device)).sum(-1),
        ("sort", "diffsort"): lambda x: network(x.shape[-1])(x)[0],
    }


def _difftopk(device: str) -> dict[tuple[str, str], Operator]:
    from difftopk import DiffTopkNet

    @lru_cache
    def network(n: int) -> Any:
        return DiffTopkNet("bitonic", n, chosen(n), device=device)

    return {("top k", "difftopk"): lambda x: network(x.shape[-1])(x)[1].sum(-1)}


LIBRARIES = {
    "reloss": (_reloss, ()),
    "LapSum": (_lapsum, ("rank", "sort", "top k")),
    "torchsort": (_torchsort, ("rank", "sort")),
    "fast-soft-sort": (_fast_soft_sort, ("rank", "sort")),
    "softtorch": (_softtorch, ("rank", "sort", "top k", "median")),
    "diffsort": (_diffsort, ("rank", "sort")),
    "difftopk": (_difftopk, ("top k",)),
}
OPERATIONS = ("rank", "sort", "top k", "median")


def operators(operation: str, device: str) -> tuple[dict[str, Operator], dict[str, str]]:
    """Return the operators of an operation by library, and the reason why others are missing."""
    available: dict[str, Operator] = {}
    missing: dict[str, str] = {}
    for library, (load, operations) in LIBRARIES.items():
        try:
            loaded = load(device)
        except ImportError as error:
            if operation in operations:
                missing[library] = f"not installed: {error}"
            continue
        available |= {name: operator for (kind, name), operator in loaded.items() if kind == operation}
    return available, missing


def estimated_bytes(name: str, batch: int, n: int) -> int:
    """Return an estimate of the bytes that an operator keeps for the backward pass, 0 if they are few."""
    blocks = (n - 1).bit_length()
    layers = blocks * (blocks + 1) // 2
    if name in ("diffsort", "difftopk"):
        return 4 * layers * (6 * batch + 2) * n * n
    if name == "reloss bitonic":
        return 4 * layers * 8 * batch * n
    return 4 * 6 * batch * n * n if name == "softtorch" else 0
