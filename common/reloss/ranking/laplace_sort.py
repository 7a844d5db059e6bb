"""Soft sorting and choosing of the k largest with Laplace distribution functions, exact in O(n log n).

F(b) = sum over i of CDF((b - x_i) / t) softly counts the values below b. It rises from 0 to n, so there is a threshold
b_k with exactly k values below it. Value i belongs to place k with the share P_ki = CDF((b_{k+1} - x_i) / t) -
CDF((b_k - x_i) / t). These shares sum to 1 over the values and over the places. Place k of the soft sort is the average
of the values by these shares; it lies in their range and does not fall with k. The shares above b_{n-k} softly choose
the k largest.

Between two neighbouring values, F is A exp(b) - B exp(-b) plus a constant, so a threshold has a closed form, asinh.

Source: Struski, Bednarczyk, Podolak and Tabor, "LapSum - One Method to Differentiate Them All: Ranking, Sorting and
Top-k Selection", ICML 2025, for the thresholds, the shares and the choice of k. Its soft sort is F's inverse instead.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.ranking.laplace_row import MAX_SIZE, row_choice
from reloss.ranking.laplace_row_sort import MAX_SORT_SIZE, row_sort, row_sort_gradient
from reloss.ranking.scans import decay_factors, decayed_sums
from reloss.ranking.sorting import cumulative_counts, gather, scatter, stable_order

MAX_GAP = 200.0  # in temperatures; exp of minus half of it is far below the rounding error


class _Row(NamedTuple):
    """Sorted values of each row in temperatures, around their middle.

    Wide gaps between neighbours make no difference to the shares, so they are narrowed to `MAX_GAP`. That keeps the
    range small, and with it the rounding errors, and no exponential underflows.

    Attributes:
        order: [..., n] of the values.
        x: [..., n] the sorted values.
        points: [..., n] the sorted values without wide gaps; the same tensor as `x` if there are none.
    """

    order: Tensor
    x: Tensor
    points: Tensor

    @staticmethod
    def of(values: Tensor, temperature: float, order: Tensor | None = None) -> _Row:
        order = stable_order(values.detach()) if order is None else order
        x = gather(values, order).double()
        x = (x - (x[..., :1] + x[..., -1:]).detach() / 2) / temperature
        if not values.is_cuda and bool((x[..., -1] - x[..., 0] < MAX_GAP).all()):
            return _Row(order, x, x)
        constant = x.detach()
        narrow = F.pad(constant.diff(dim=-1).clamp_(max=MAX_GAP).cumsum(-1), (1, 0))
        return _Row(order, x, narrow + (x - constant))


def laplace_choice(values: Tensor, k: int, temperature: float) -> Tensor:
    """Return the shares [..., n] of `values` [..., n] among the k largest, 0 < k < n. They sum to k."""
    result: Tensor = _LaplaceChoice.apply(values, k, temperature)
    return result


def laplace_log_choice(values: Tensor, index: Tensor, k: int, temperature: float) -> Tensor:
    """Return the logarithm [...] of the share among the k largest of the value at `index` [..., 1], 0 < k < n.

    Far below the threshold, where the share underflows, its logarithm is linear.
    """
    row = _Row.of(values, temperature)
    points = row.points
    level = _level(points, k)
    threshold = thresholds(points, level)
    place = row.order.argsort(dim=-1).gather(-1, index)
    # Give back what was removed between the value and the threshold, which is near the lower end of a wide gap, near
    # its upper end or in its middle.
    excess = gather(points, place) - threshold
    if points is not row.x:
        removed = row.x.detach() - points.detach()
        count = torch.searchsorted(points.detach(), threshold.detach(), right=True)
        ends = gather(removed, (count - 1).clamp(min=0)), gather(removed, count.clamp(max=points.shape[-1] - 1))
        middle = (ends[0] + ends[1]) / 2
        excess = (
            excess
            + gather(removed, place)
            - torch.where(level < count, ends[0], torch.where(level > count, ends[1], middle))
        )
    excess = excess.squeeze(-1)
    upper = torch.log1p(-0.5 * (-excess.clamp(min=0)).exp())
    return torch.where(excess < 0, excess.clamp(max=0) - math.log(2), upper).to(values.dtype)


def laplace_matrix(values: Tensor, temperature: float) -> Tensor:
    """Return the shares [..., n, n] of `values` [..., n] on the places: row k belongs to place k, ascending."""
    row = _Row.of(values, temperature)
    points = row.points
    levels = torch.arange(1, values.shape[-1], dtype=points.dtype, device=points.device)
    below = laplace_cdf(thresholds(points, levels)[..., None] - points[..., None, :])
    ends = torch.zeros_like(points)[..., None, :], torch.ones_like(points)[..., None, :]
    shares = below.diff(dim=-2, prepend=ends[0], append=ends[1]).to(values.dtype)
    place = row.order.argsort(dim=-1)[..., None, :].expand_as(shares)
    return shares.gather(-1, place)


def laplace_sort(values: Tensor, start: int, stop: int, temperature: float) -> Tensor:
    """Return the places start <= k < stop of softly sorted `values` [..., n], ascending."""
    result: Tensor = _LaplaceSort.apply(values, start, stop, temperature)
    return result


def thresholds(points: Tensor, levels: Tensor) -> Tensor:
    """Return where F for ascending `points` [..., n] at temperature 1 equals each of `levels` [m]: [..., m].

    Both in float64; levels are consecutive whole numbers above 0 and below n. Differentiable.
    """
    result: Tensor = _Thresholds.apply(points, levels)
    return result


def _level(points: Tensor, k: int) -> Tensor:
    return torch.tensor([points.shape[-1] - k], dtype=points.dtype, device=points.device)


def laplace_cdf(x: Tensor) -> Tensor:
    """Return the cumulative distribution function of the standard Laplace distribution. Twice differentiable."""
    # Not by abs, whose derivative at 0 is 0.
    return torch.where(x < 0, 0.5 * x.clamp(max=0).exp(), 1 - 0.5 * (-x.clamp(min=0)).exp())


class _Points(NamedTuple):
    """Sorted points [..., m] with decayed sums, to evaluate sums of exp(-|point - x|) between them.

    `sums` are pairs of the result of `decayed_sums`, one for each kind of weight.
    """

    points: Tensor
    sums: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(points: Tensor, *weights: Tensor | None) -> _Points:
        factors = decay_factors(points)
        return _Points(points, tuple(decayed_sums(weight, factors) for weight in weights))

    def tails(self, x: Tensor, count: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the sums over the first `count` points and over the others, at ascending x, for each weight."""
        last = self.points.shape[-1] - 1
        before, after = (count - 1).clamp_(min=0), count.clamp(max=last)
        left_decay = (gather(self.points, before) - x).clamp(max=0).exp() * (count > 0)
        right_decay = (x - gather(self.points, after)).clamp(max=0).exp() * (count <= last)
        return [(gather(left, before) * left_decay, gather(right, after) * right_decay) for left, right in self.sums]


def _sorted_thresholds(points: _Points, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the thresholds [..., m], and how many of the sorted points each one is above. Differentiable."""
    x, ((left_sums, right_sums), *_) = points
    n = x.shape[-1]
    places = torch.arange(n, dtype=x.dtype, device=x.device)
    below = ((right_sums - left_sums) / 2 + places + 0.5).detach()  # F at the points
    if levels.shape[-1] == 1:
        count = torch.searchsorted(below, levels.expand(*x.shape[:-1], 1).contiguous(), right=True)
    else:
        count = cumulative_counts((below - levels[0]).ceil_().clamp_(min=0).long(), levels.shape[-1])
    before, after = (count - 1).clamp_(min=0), count.clamp(max=n - 1)
    lower, upper, left, right = (
        gather(x, before),
        gather(x, after),
        gather(left_sums, before),
        gather(right_sums, after),
    )
    inside = (lower + upper - (right / left).log()) / 2
    inside = inside + torch.asinh((levels - count) * ((upper - lower) / 2).exp() * (left * right).rsqrt())
    first = x[..., :1] + (2 * levels / right_sums[..., :1]).log()
    last = x[..., -1:] - (2 * (n - levels) / left_sums[..., -1:]).log()
    return torch.where(count == 0, first, torch.where(count == n, last, inside)), count


class _LaplaceChoice(torch.autograd.Function):
    """The result of `laplace_choice`, with a gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, k: int, temperature: float) -> Tensor:
        shares, density = _choice(values, k, temperature)
        ctx.k, ctx.temperature = k, temperature
        ctx.save_for_backward(values, density)
        return shares

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, density = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the definition
            row = _Row.of(values, ctx.temperature)
            points = row.points
            shares = laplace_cdf(points - thresholds(points, _level(points, ctx.k)))
            shares = scatter(shares.to(values.dtype), row.order)
            (result,) = torch.autograd.grad(shares, values, gradient, create_graph=True)
            return result, None, None
        # A value moves its own share, and the threshold by its part of the density there, so that the sum stays k.
        pulls = gradient * density
        mean = pulls.sum(-1, keepdim=True) / density.sum(-1, keepdim=True)
        result = torch.addcmul(pulls, mean, density, value=-1).div_(ctx.temperature)
        return result.to(values.dtype), None, None


def _choice(values: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the shares [..., n] of `values` among the k largest, and the Laplace density at the threshold."""
    if values.numel() == values.shape[-1] <= MAX_SIZE and _uses_numpy(values):
        result = row_choice(values.numpy().reshape(-1), k, temperature)
        if result is not None:
            return torch.from_numpy(result[0]).view(values.shape), torch.from_numpy(result[1]).view(values.shape)
    row = _Row.of(values, temperature)
    points = row.points
    threshold, _ = _sorted_thresholds(_Points.of(points, None), _level(points, k))
    excess = points - threshold
    density = 0.5 * (-excess.abs()).exp()
    shares = torch.where(excess < 0, density, 1 - density).to(values.dtype)
    return scatter(shares, row.order), scatter(density, row.order)


class _Thresholds(torch.autograd.Function):
    """The result of `thresholds`, with the gradient of an implicit function."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, levels: Tensor) -> Tensor:
        sums = _Points.of(points, None)
        result, count = _sorted_thresholds(sums, levels)
        ((left, right),) = sums.tails(result, count)
        ctx.save_for_backward(points, levels, result, count, left + right)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        points, levels, thresholds, count, density = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the closed form
            closed_form, _ = _sorted_thresholds(_Points.of(points, None), levels)
            (result,) = torch.autograd.grad(closed_form, points, gradient, create_graph=True)
            return result, None
        # d b / d x_i = exp(-|b - x_i|) / sum over j of exp(-|b - x_j|)
        below = cumulative_counts(count, points.shape[-1])  # thresholds below each point
        ((left, right),) = _Points.of(thresholds, gradient / density).tails(points, below)
        return left + right, None


class _LaplaceSort(torch.autograd.Function):
    """The result of `laplace_sort`, with a gradient in closed form.

    Place k is H(b_{k+1}) - H(b_k), with H(b) = sum over i of x_i CDF(b - x_i), H(b_0) = 0 and H(b_n) = sum of x.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, start: int, stop: int, temperature: float) -> Tensor:
        ctx.options = start, stop, temperature
        order = stable_order(values)
        ctx.row = None
        if values.numel() == values.shape[-1] <= MAX_SORT_SIZE and _uses_numpy(values):
            ctx.row = row_sort(gather(values, order).double().numpy().reshape(-1), start, stop, temperature)
        if ctx.row is not None:
            ctx.save_for_backward(values, order)
            return torch.from_numpy(ctx.row.places).to(values.dtype).view(*values.shape[:-1], stop - start)
        row = _Row.of(values, temperature, order)
        places, *saved = _sorted_places(row, start, stop)
        ctx.save_for_backward(values, *row, *saved)
        return _in_unit(places, values, row, temperature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values, order, *saved = ctx.saved_tensors
        start, stop, temperature = ctx.options
        if torch.is_grad_enabled():
            row = _Row.of(values, temperature, order)
            places = _in_unit(_sorted_places(row, start, stop)[0], values, row, temperature)
            (result,) = torch.autograd.grad(places, values, gradient, create_graph=True)
        elif ctx.row is not None:
            pulls = row_sort_gradient(gradient.double().numpy().reshape(-1), ctx.row, start, stop)
            result = scatter(torch.from_numpy(pulls).to(gradient.dtype).view(values.shape), order)
        else:
            result = scatter(_sort_gradient(gradient.double(), start, stop, *saved).to(gradient.dtype), order)
        return result, None, None, None


def _sort_gradient(
    gradient: Tensor,
    start: int,
    stop: int,
    x: Tensor,
    points: Tensor,
    thresholds: Tensor,
    count: Tensor,
    means: Tensor,
) -> Tensor:
    """Return the gradient [..., n] in the sorted values, from the gradient [..., stop - start] in their places."""
    steps = F.pad(gradient, (1, 1))
    steps = steps[..., :-1] - steps[..., 1:]  # the gradients in H(b_start), ..., H(b_stop)
    total = steps[..., -1:] if stop == x.shape[-1] else 0.0
    steps = steps[..., int(start == 0) : stop - start + int(stop < x.shape[-1])]
    # d H(b) / d x_i = CDF(b - x_i) + (mean - x_i) exp(-|b - x_i|) / 2, where `mean` averages x near b: the first term
    # by the factor x_i of H, the second one by x_i inside the CDF and by x_i moving b.
    below = cumulative_counts(count, x.shape[-1])  # thresholds below each point
    (left, right), (left_mean, right_mean) = _Points.of(thresholds, steps, steps * means).tails(points, below)
    above = F.pad(steps.flip(-1).cumsum(-1).flip(-1), (0, 1))  # the CDF is 1 - exp / 2 there
    return gather(above, below) + (left - right + left_mean + right_mean - x * (left + right)) / 2 + total


def _uses_numpy(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _in_unit(places: Tensor, values: Tensor, row: _Row, temperature: float) -> Tensor:
    """Return sorted places in the unit, around the middle and in the dtype of the values."""
    ends = gather(values.detach(), row.order[..., :: max(values.shape[-1] - 1, 1)]).double()
    return (places * temperature + (ends[..., :1] + ends[..., -1:]) / 2).to(values.dtype)


def _sorted_places(row: _Row, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return places start <= k < stop of the soft sort of a row, and what the gradient needs. Differentiable.

    Returns:
        The places [..., stop - start]; the thresholds at their ends, without those of 0 and n; how many points each
        threshold is above; the means of x near each threshold.
    """
    x, n = row.x, row.x.shape[-1]
    levels = torch.arange(max(start, 1), min(stop, n - 1) + 1, dtype=x.dtype, device=x.device)
    points = _Points.of(row.points, None, x)
    thresholds, count = _sorted_thresholds(points, levels)
    (left, right), (left_x, right_x) = points.tails(thresholds, count)
    cumulated = F.pad(x.cumsum(-1), (1, 0))
    heights = gather(cumulated, count) + (right_x - left_x) / 2
    if start == 0:
        heights = F.pad(heights, (1, 0))
    if stop == n:
        heights = torch.cat((heights, cumulated[..., -1:]), -1)
    return heights.diff(dim=-1), thresholds, count, (left_x + right_x) / (left + right)
