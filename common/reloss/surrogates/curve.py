"""Values and slopes of a learned curve at many points, from few evaluations of its network.

A loss that depends on one number per example is a curve. A fit needs its value and slope for every example of a bank,
but the curve is smooth: a thousand knots with cubic interpolation between them give both, within the rounding of the
float16 numbers in the bank.
"""

from collections.abc import Callable

import torch
from torch import Tensor

EXACT = 2_048  # up to this many points the network itself is evaluated
KNOTS = 1_024

Curve = Callable[[Tensor], Tensor]


def value_and_slope(curve: Curve, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and slope of `curve` at `inputs` [...], both differentiable in the parameters of the curve.

    More than EXACT inputs are interpolated between KNOTS of them, with the value and slope of the curve at each knot.
    Inputs in float64 are always exact.
    """
    if inputs.numel() <= EXACT or inputs.dtype == torch.float64:
        return _by_autograd(curve, inputs)
    flat = inputs.flatten()
    knots = _place_knots(flat)
    values, slopes = _by_autograd(curve, knots)
    right = torch.searchsorted(knots, flat).clamp(1, KNOTS - 1)
    left = right - 1
    width = (knots[right] - knots[left]).clamp(min=torch.finfo(flat.dtype).tiny)
    t = ((flat - knots[left]) / width).clamp(0, 1)
    rise = values[right] - values[left]
    bend_left, bend_right = slopes[left] * width - rise, rise - slopes[right] * width
    interpolated = values[left] + t * (rise + (1 - t) * (bend_left * (1 - t) + bend_right * t))
    return interpolated.view_as(inputs), torch.lerp(slopes[left], slopes[right], t).view_as(inputs)


def quantile_places(count: int, device: torch.device) -> Tensor:
    """Return KNOTS / 2 indices, evenly spread from 0 to count - 1.

    Computed in integers: float32 is exact only up to 2^24.
    """
    return torch.arange(KNOTS // 2, device=device) * (count - 1) // (KNOTS // 2 - 1)


def _place_knots(flat: Tensor) -> Tensor:
    """Return KNOTS knots in order: half are quantiles of the inputs [M], half evenly spaced over their range."""
    ordered = flat.sort().values
    quantiles = ordered[quantile_places(len(flat), flat.device)]
    spaced = torch.lerp(ordered[0], ordered[-1], torch.linspace(0, 1, KNOTS // 2, device=flat.device))
    return torch.cat((quantiles, spaced)).sort().values


def _by_autograd(curve: Curve, inputs: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        inputs = inputs.detach().requires_grad_()
        values = curve(inputs)
        (slopes,) = torch.autograd.grad(values.sum(), inputs, create_graph=True)
    return values, slopes
