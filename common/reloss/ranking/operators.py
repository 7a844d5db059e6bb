"""Soft versions of torch.sort, argsort, topk, quantile and median, with gradients that say how values should move.

A soft sort is an average: each place holds a share of every value, and the shares form a matrix whose rows and columns
sum to 1. `soft_argsort` returns the matrix, `soft_sort` the matrix times the values, `soft_quantile` an interpolation
between two of its rows, and `soft_top_k` the shares on the last k places. As the temperature goes to 0 (or the
steepness to infinity), all become what torch computes.

`laplace` (Struski et al., ICML 2025) takes O(n log n) and does not depend on the order of the input. The sorting
networks (Petersen et al., ICML 2021) mix the values by layers of soft swaps; see `reloss.ranking.soft`. In all of them,
sorted values stay in the range of the values and keep their sum.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from reloss.ranking.hard import sortable
from reloss.ranking.laplace_sort import laplace_choice, laplace_matrix, laplace_sort
from reloss.ranking.networks import network_matrix, network_places, network_sort
from reloss.ranking.options import NETWORKS, Prepared, as_float, prepare
from reloss.ranking.wiring import Network, Wiring, wiring_of

SortMethod = Literal["laplace", "bitonic", "odd_even"]
QuantileInterpolation = Literal["linear", "lower", "higher", "midpoint", "nearest"]
SORT_METHODS: tuple[str, ...] = get_args(SortMethod)


class SoftTopK(NamedTuple):
    """The result of `soft_top_k`: the k largest values, and the share of every value among them."""

    values: Tensor
    mask: Tensor


def soft_sort(
    values: Tensor,
    dim: int = -1,
    descending: bool = False,
    *,
    method: SortMethod = "laplace",
    straight_through: bool = False,
    **options: Any,
) -> Tensor:
    """Return softly sorted `values`, as `torch.sort(values, dim, descending).values`. Twice differentiable.

    Place k of a row is the average of its values by their shares of the place, see `soft_argsort`. It lies in the range
    of the row, and the places keep its sum. With `laplace` they ascend, do not depend on the order of the input, and
    equal values stay equal.

    Args:
        values: finite, any real dtype; float16 and bfloat16 are computed in float32, integers in float64.
        dim: the axis to sort.
        descending: largest first.
        method: `laplace` in O(n log n), `bitonic` in O(n log^2 n) or `odd_even` in O(n^2).
        straight_through: return the hard result, with the gradient of the soft one.
        options: options of `soft_rank` for this method: `temperature`, or `steepness`, `interpolation`, `art_lambda`
            and `fidelity`. The temperature is in the unit of the values; a tensor such as `0.1 * values.std(dim,
            keepdim=True)` makes it relative to their spread.

    Returns:
        The shape of `values`, in float32 (float64 for float64 values and integers).

    Raises:
        ValueError: as for `soft_rank`.
    """
    prepared = prepare(values, method, dim, methods=SORT_METHODS, **options)
    result = _sorted_places(prepared, method, 0, prepared.values.shape[-1])
    if straight_through:
        result = _straight_through(_hard_sort(values, dim), result)
    return (result.flip(-1) if descending else result).movedim(-1, dim)


def soft_argsort(
    values: Tensor,
    dim: int = -1,
    descending: bool = False,
    *,
    method: SortMethod = "laplace",
    straight_through: bool = False,
    **options: Any,
) -> Tensor:
    """Return the shares of the values on the places, a soft permutation matrix. Twice differentiable.

    It is `one_hot(torch.argsort(values, dim, descending))` in the limit: the values take a new axis at the end, their
    places the axis `dim`. For `values` [..., n], entry [..., k, i] is the share of value i on place k, and the matrix
    times `values[..., None]` is `soft_sort(values)`. Rows and columns sum to 1. O(n^2) memory (times the layers of a
    network); for large n use the other operators, which need no matrix.

    Args:
        values: as for `soft_sort`.
        dim: the axis to sort.
        descending: largest first.
        method: as for `soft_sort`.
        straight_through: return the hard permutation matrix, with the gradient of the soft one.
        options: as for `soft_sort`.

    Returns:
        [..., n] with `dim` kept, in float32 (float64 for float64 values and integers), in [0, 1].

    Raises:
        ValueError: as for `soft_rank`.
    """
    prepared = prepare(values, method, dim, methods=SORT_METHODS, **options)
    row, n = prepared.values, prepared.values.shape[-1]
    if n == 1 or row.numel() == 0:
        result = (row * 0)[..., None] + torch.ones(n, dtype=row.dtype, device=row.device)
    elif method == "laplace":
        result = laplace_matrix(row, prepared.temperature)
    else:
        result = network_matrix(row, _wiring(prepared, method), prepared.comparator)
    result = result.to(prepared.dtype)
    if straight_through:
        order = sortable(values.detach()).movedim(dim, -1).argsort(dim=-1, stable=True)
        result = _straight_through(torch.nn.functional.one_hot(order, n), result)
    axis = dim if dim >= 0 else dim + values.dim()
    return (result.flip(-2) if descending else result).movedim(-2, axis)


def soft_top_k(
    values: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    *,
    method: SortMethod = "laplace",
    straight_through: bool = False,
    **options: Any,
) -> SoftTopK:
    """Return the k largest values, and the share of every value among them. Twice differentiable.

    The first result is `torch.topk(values, k, dim, largest).values` in the limit, k places of `soft_sort`. The second
    one replaces its indices: a mask in [0, 1] that sums to k and becomes 1 for the k largest values and 0 for the
    others. If only the mask is needed, `soft_top_k_mask` takes half the time.

    Args:
        values: as for `soft_sort`.
        k: from 0 to n.
        dim: the axis to choose along.
        largest: the largest values, in descending order; else the smallest in ascending order.
        method: as for `soft_sort`.
        straight_through: return the hard results, with the gradients of the soft ones.
        options: as for `soft_sort`.

    Raises:
        ValueError: as for `soft_rank`, or k is not from 0 to n.
    """
    prepared = prepare(values, method, dim, methods=SORT_METHODS, **options)
    mask = _top_k_mask(prepared, values, k, dim, largest, method, straight_through)
    n = prepared.values.shape[-1]
    first = n - k if largest else 0
    result = _sorted_places(prepared, method, first, first + k)
    if straight_through:
        result = _straight_through(_hard_sort(values, dim)[..., first : first + k], result)
    return SoftTopK((result.flip(-1) if largest else result).movedim(-1, dim), mask)


def soft_top_k_mask(
    values: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    *,
    method: SortMethod = "laplace",
    straight_through: bool = False,
    **options: Any,
) -> Tensor:
    """Return the share of every value among the k largest: the mask of `soft_top_k`, which explains the arguments."""
    prepared = prepare(values, method, dim, methods=SORT_METHODS, **options)
    return _top_k_mask(prepared, values, k, dim, largest, method, straight_through)


def _top_k_mask(
    prepared: Prepared, values: Tensor, k: int, dim: int, largest: bool, method: SortMethod, straight_through: bool
) -> Tensor:
    row, n = prepared.values, prepared.values.shape[-1]
    if not (isinstance(k, int) and 0 <= k <= n):
        raise ValueError(f"k must be an integer from 0 to n = {n}, not {k!r}")
    if k in (0, n) or row.numel() == 0:
        mask = row * 0 + float(k > 0)
    elif method == "laplace":
        mask = laplace_choice(row if largest else -row, k, prepared.temperature)
    else:
        worth = torch.zeros(n, dtype=row.dtype, device=row.device)
        worth[slice(n - k, n) if largest else slice(k)] = 1
        mask = network_places(row, worth, _wiring(prepared, method), prepared.comparator)
    mask = mask.to(prepared.dtype)
    if straight_through:
        chosen = sortable(values.detach()).movedim(dim, -1).topk(k, largest=largest).indices
        mask = _straight_through(torch.zeros_like(mask).scatter_(-1, chosen, 1), mask)
    return mask.movedim(-1, dim)


def soft_quantile(
    values: Tensor,
    q: float | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: QuantileInterpolation = "linear",
    method: SortMethod = "laplace",
    straight_through: bool = False,
    **options: Any,
) -> Tensor:
    """Return soft quantiles, as `torch.quantile(values, q, dim, keepdim, interpolation=...)`. Twice differentiable.

    A quantile lies between two places of `soft_sort`. `laplace` computes only the places that are needed.

    Args:
        values: as for `soft_sort`.
        q: a number in [0, 1], or a tensor of them, [] or [m].
        dim: the axis to reduce; None takes all values as one row.
        keepdim: keep the axis with size 1.
        interpolation: between the places k and k + 1 around q (n - 1), as in torch. (The option of this name of a
            network keeps its default here.)
        method: as for `soft_sort`.
        straight_through: return the hard quantile, with the gradient of the soft one.
        options: as for `soft_sort`.

    Returns:
        `values` without the axis `dim`; [m, ...] for q [m].

    Raises:
        ValueError: as for `soft_rank`, or q is outside [0, 1], or the interpolation is unknown.
    """
    if interpolation not in get_args(QuantileInterpolation):
        raise ValueError(
            f"unknown interpolation '{interpolation}'; valid: {', '.join(get_args(QuantileInterpolation))}"
        )
    quantiles = torch.as_tensor(q, dtype=torch.float64, device="cpu")
    if quantiles.dim() > 1 or not bool(((quantiles >= 0) & (quantiles <= 1)).all()):
        raise ValueError(f"q must be a number in [0, 1], or a tensor [m] of them, not {q}")
    axes = values.dim()
    if dim is None:
        values = values.flatten()
    axis = -1 if dim is None else dim
    prepared = prepare(values, method, axis, methods=SORT_METHODS, **options)
    hard = _hard_sort(values, axis) if straight_through else None
    results = []
    for place in (quantiles.reshape(-1) * (prepared.values.shape[-1] - 1)).tolist():
        lower, upper, weight = _neighbours(place, interpolation)
        pair = _sorted_places(prepared, method, lower, upper + 1)
        if hard is not None:
            pair = _straight_through(hard[..., lower : upper + 1], pair)
        results.append(torch.lerp(pair[..., :1], pair[..., -1:], weight))
    result = torch.cat(results, -1).movedim(-1, 0)  # [m, ...]
    if keepdim:
        result = result.view(len(result), *[1] * axes) if dim is None else result.unsqueeze(axis % axes + 1)
    return result if quantiles.dim() else result[0]


def soft_median(
    values: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    method: SortMethod = "laplace",
    straight_through: bool = False,
    **options: Any,
) -> Tensor:
    """Return the soft median, as `torch.median(values, dim, keepdim).values`: of two middle places the lower one.

    The arguments are those of `soft_quantile`; `soft_quantile(values, 0.5)` averages the two places instead.
    """
    return soft_quantile(
        values,
        0.5,
        dim,
        keepdim,
        interpolation="lower",
        method=method,
        straight_through=straight_through,
        **options,
    )


def _sorted_places(prepared: Prepared, method: str, start: int, stop: int) -> Tensor:
    """Return the places start <= k < stop of the ascending soft sort, with the sorted axis at the end."""
    row = prepared.values
    if row.shape[-1] == 1 or row.numel() == 0 or start == stop:
        result = row[..., start:stop]
    elif method in NETWORKS:
        result = network_sort(row, _wiring(prepared, method), prepared.comparator)[..., start:stop]
    else:
        result = laplace_sort(row, start, stop, prepared.temperature)
    return prepared.unscaled(result)


def _wiring(prepared: Prepared, method: str) -> Wiring:
    network: Network = "odd_even" if method == "odd_even" else "bitonic"
    return wiring_of(network, prepared.values.shape[-1], prepared.fidelity, prepared.values.device)


def _hard_sort(values: Tensor, dim: int) -> Tensor:
    """Return `values` in ascending order, with the sorted axis at the end."""
    return as_float(values.detach()).movedim(dim, -1).sort(dim=-1).values


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the hard result, with the gradient of the soft one."""
    return hard.to(soft.dtype) + (soft - soft.detach())


def _neighbours(place: float, interpolation: QuantileInterpolation) -> tuple[int, int, float]:
    """Return the two places to interpolate between, which can be the same, and the weight of the second one."""
    lower, upper = int(place), -int(-place // 1)
    if interpolation == "lower":
        return lower, lower, 0.0
    if interpolation == "higher":
        return upper, upper, 0.0
    if interpolation == "nearest":
        nearest = round(place)
        return nearest, nearest, 0.0
    return lower, upper, 0.5 if interpolation == "midpoint" else place - lower
