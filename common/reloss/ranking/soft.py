"""Soft ranks: one function, four methods.

A soft rank replaces the step functions of a hard rank by smooth ones. `bitonic` and `odd_even` soften the swaps of a
sorting network; `laplace` and `pairwise` soften the comparison of a value with every other value.

| method | work | definition | source |
| --- | --- | --- | --- |
| `bitonic` | n log^2 n | differentiable sorting network, the released method | Petersen et al., 2021 |
| `odd_even` | n^2 | the same with n layers that compare neighbours | Petersen et al., 2021 |
| `laplace` | n log n | sum over j != i of the Laplace CDF of (x_i - x_j) / temperature | Struski et al., 2025 |
| `pairwise` | n^2, bounded memory | the same with the sigmoid | Qin et al., 2010 |

Properties. The ranks of a row sum to n(n-1)/2.

- The sums (`laplace`, `pairwise`) do not depend on the order of the input, never misorder two values, and raise the
  rank of a value with the value. Equal values get equal ranks.
- The networks guarantee none of this. They keep ranks in [0, n-1], but the ranks depend on the order of the input,
  close values may be misordered, and a rank may fall when its value rises. Well separated values get their hard ranks
  for every n. Equal values are mixed half and half at every comparison. That makes the ranks of a constant row equal
  for `bitonic` if n is a power of two; otherwise it only draws them together.

Scale. If the values spread little compared with 1 / steepness or the temperature, all ranks move towards (n-1)/2. For
`bitonic` and n = 256 normal values, soft and hard ranks correlate by .99 at standard deviation 1, by .6 at 0.3 and by
.06 at 0.1. `standardize=True` divides each row by its standard deviation first and so removes this dependence.

The transforms of `torch.func` (vmap, grad, jacrev) are not supported. `torch.compile` captures every method except
`laplace` in one graph; values are not checked there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reloss.ranking.hard import hard_rank
from reloss.ranking.laplace import laplace_rank
from reloss.ranking.networks import Interpolation, network_places
from reloss.ranking.options import METHODS, Method, Prepared, prepare
from reloss.ranking.pairwise import pairwise_rank
from reloss.ranking.wiring import Fidelity, wiring_of


def soft_rank(
    values: Tensor,
    method: Method = "bitonic",
    *,
    dim: int = -1,
    descending: bool = False,
    straight_through: bool = False,
    standardize: bool = False,
    steepness: float | Tensor | None = None,
    interpolation: Interpolation | None = None,
    art_lambda: float | None = None,
    temperature: float | Tensor | None = None,
    fidelity: Fidelity | None = None,
) -> Tensor:
    """Return differentiable ranks of `values` along an axis, ascending from 0.

    The module's docstring compares the methods. Ranks can be differentiated twice, with finite gradients at ties.

    Args:
        values: [..., n], finite, n >= 1, any strides. float16 and bfloat16 are computed in float32, integers in
            float64.
        method: one of the table.
        dim: the axis to rank.
        descending: rank 0 is the largest value instead of the smallest.
        straight_through: return the hard ranks, with the gradient of the soft ones.
        standardize: give each row mean 0 and standard deviation 1 first. A constant row becomes zeros.
        steepness: of a comparison in a network; higher is closer to a hard swap. Default 5, the released value.
        interpolation: the function from a difference to a weight in a network. Default `logistic_phi`, as released.
        art_lambda: exponent of `logistic_phi`, from 0 to below 1. Default 0.25.
        temperature: scale of `laplace` and `pairwise`; ranks become hard as it goes to 0. Default 0.1. Like the
            steepness, it can be a tensor with a gradient: without axes, or with those of `values` and size 1 along
            `dim`, for example `values.std(dim, keepdim=True)`.
        fidelity: of `bitonic`. `released` is diffsort's network for every n, which misorders some values for most n
            that are no power of two, and warns. Default `corrected`, which is the same where diffsort's sorts.

    Returns:
        Ranks in the shape of `values`, in float32 (float64 for float64 values and integers).

    Raises:
        ValueError: n is 0, a value is NaN or infinite (the message names its index), `dim` is no axis, the method is
            unknown, or an option is invalid or belongs to another method.
    """
    options = (steepness, interpolation, art_lambda, temperature, fidelity)
    prepared = prepare(values, method, dim, METHODS, standardize, *options)
    ranks = _ascending_ranks(prepared, method)
    if straight_through:
        ranks = hard_rank(values.movedim(dim, -1)).to(ranks.dtype) + (ranks - ranks.detach())
    if descending:
        ranks = (ranks.shape[-1] - 1) - ranks
    return ranks if dim == -1 else ranks.movedim(-1, dim)


def _ascending_ranks(prepared: Prepared, method: Method) -> Tensor:
    """Return the ranks along the last axis."""
    row = prepared.values
    n = row.shape[-1]
    if n == 1 or row.numel() == 0:
        ranks = row * 0
    elif method == "laplace":
        ranks = laplace_rank(row, prepared.temperature)
    elif method == "pairwise":
        ranks = pairwise_rank(row, prepared.temperature)
    else:
        middle = (n - 1) / 2
        places = torch.arange(n, dtype=row.dtype, device=row.device) - middle
        wiring = wiring_of(method, n, prepared.fidelity, row.device)
        ranks = network_places(row, places, wiring, prepared.comparator) + middle
    return ranks if ranks.dtype == prepared.dtype else ranks.to(prepared.dtype)
