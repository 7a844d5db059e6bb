"""What the soft operators share: the choice of a method, its options, and values on a scale that fits them.

Every method decides a comparison softly, over a distance called the temperature, or one over the steepness. Dividing
the values by the temperature has the same effect, so a temperature that is a tensor needs no code of its own.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from reloss.ranking.hard import check_row, check_values, sortable
from reloss.ranking.networks import Comparator, Interpolation
from reloss.ranking.wiring import Fidelity, Network

Method = Literal["bitonic", "odd_even", "laplace", "pairwise"]
METHODS: tuple[str, ...] = get_args(Method)
NETWORKS: tuple[str, ...] = get_args(Network)
LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}
STEEPNESS, TEMPERATURE, ART_LAMBDA = 5.0, 0.1, 0.25


class Prepared(NamedTuple):
    """Checked input of a method.

    Attributes:
        values: [..., n] in float32 or float64, the axis to rank at the end, multiplied by `scale`.
        scale: None, or what a tensor of temperatures makes of the values: [] or [..., 1].
        temperature: of a sum.
        comparator: of a network.
        fidelity: of a network.
        dtype: of the result.
    """

    values: Tensor
    scale: Tensor | None
    temperature: float
    comparator: Comparator
    fidelity: Fidelity
    dtype: torch.dtype

    def unscaled(self, sorted_values: Tensor) -> Tensor:
        """Return a result in the unit of `values` in the unit and the dtype of the input."""
        return (sorted_values if self.scale is None else sorted_values / self.scale).to(self.dtype)


def prepare(
    values: Tensor,
    method: str,
    dim: int = -1,
    methods: tuple[str, ...] = METHODS,
    standardize: bool = False,
    steepness: float | Tensor | None = None,
    interpolation: Interpolation | None = None,
    art_lambda: float | None = None,
    temperature: float | Tensor | None = None,
    fidelity: Fidelity | None = None,
) -> Prepared:
    """Check values and options, which `soft_rank` explains, and return what a method needs.

    Raises:
        ValueError: n is 0, a value is NaN or infinite, `dim` is no axis, or an option is invalid or belongs to another
            method.
    """
    largest = check_values(values, dim)
    options = (method, methods, steepness, interpolation, art_lambda, temperature, fidelity)
    option = steepness if method in NETWORKS else temperature
    number, comparator = (_resolved.__wrapped__ if isinstance(option, Tensor) else _resolved)(*options)
    moved = as_float(values if dim == -1 else values.movedim(dim, -1))
    dtype = moved.dtype
    scale = None
    sharpness = number if method in NETWORKS else 1 / number
    if isinstance(option, Tensor):
        scale = _scale(option, values, dim, method, comparator).to(dtype)
        sharpness = scale.detach().max().item() if scale.numel() else 1.0
    moved = standardized(moved) if standardize else _without_overflow(moved, largest, sharpness)
    if scale is not None:
        moved = moved * scale
    return Prepared(moved, scale, number, comparator, fidelity or "corrected", dtype)


@lru_cache(maxsize=256, typed=True)
def _resolved(
    method: str,
    methods: tuple[str, ...],
    steepness: float | Tensor | None,
    interpolation: Interpolation | None,
    art_lambda: float | None,
    temperature: float | Tensor | None,
    fidelity: Fidelity | None,
) -> tuple[float, Comparator]:
    """Return the temperature or steepness, 1 in place of a tensor, and the comparator. Cached: it takes long to check.

    Raises:
        ValueError: an option is invalid or belongs to another method.
    """
    _check_options(method, methods, steepness, interpolation, art_lambda, temperature, fidelity)
    option, default = (steepness, STEEPNESS) if method in NETWORKS else (temperature, TEMPERATURE)
    number = 1.0 if isinstance(option, Tensor) else default if option is None else option
    exponent = ART_LAMBDA if art_lambda is None else art_lambda
    return number, Comparator(number, interpolation or "logistic_phi", exponent)


def _scale(option: Tensor, values: Tensor, dim: int, method: str, comparator: Comparator) -> Tensor:
    """Return the factor of the values, [] or [..., 1], that has the effect of a tensor of temperatures or steepnesses.

    Raises:
        ValueError: the shape does not fit that of the values.
    """
    if option.dim():
        fits = option.dim() == values.dim() and option.shape[dim] == 1
        if not fits or any(size not in (1, whole) for size, whole in zip(option.shape, values.shape, strict=True)):
            raise ValueError(
                f"a tensor of temperatures or steepnesses must have no axes, or those of the values "
                f"{list(values.shape)} with size 1 along dim, not {list(option.shape)}"
            )
        option = option.movedim(dim, -1)
    if method not in NETWORKS:
        return 1 / option
    if comparator.interpolation != "logistic_phi":
        return option
    # It divides a difference by its power art_lambda, so values act less than in proportion.
    return option.pow(1 / (1 - comparator.art_lambda))


def _check_options(
    method: str,
    methods: tuple[str, ...],
    steepness: float | Tensor | None,
    interpolation: Interpolation | None,
    art_lambda: float | None,
    temperature: float | Tensor | None,
    fidelity: Fidelity | None,
) -> None:
    """Raise ValueError if an option is unknown, out of range, or belongs to another method or interpolation."""
    if method not in methods:
        raise ValueError(f"unknown method '{method}'; valid: {', '.join(methods)}")
    if method in NETWORKS:
        foreign: dict[str, Any] = {"temperature": temperature}
    else:
        foreign = {
            "steepness": steepness,
            "interpolation": interpolation,
            "art_lambda": art_lambda,
            "fidelity": fidelity,
        }
    for name, value in foreign.items():
        if value is not None:
            raise ValueError(f"method '{method}' has no option '{name}'; remove it")
    if steepness is not None:
        check_scale("steepness", steepness)
    if temperature is not None:
        check_scale("temperature", temperature)
    if fidelity is not None and fidelity not in get_args(Fidelity):
        raise ValueError(f"unknown fidelity '{fidelity}'; valid: {', '.join(get_args(Fidelity))}")
    if interpolation is not None and interpolation not in get_args(Interpolation):
        raise ValueError(f"unknown interpolation '{interpolation}'; valid: {', '.join(get_args(Interpolation))}")
    if art_lambda is not None and interpolation not in (None, "logistic_phi"):
        raise ValueError(f"interpolation '{interpolation}' has no option 'art_lambda'; remove it")
    if art_lambda is not None and not (_is_number(art_lambda) and 0 <= art_lambda < 1):
        raise ValueError(f"art_lambda must be a number from 0 to below 1, not {art_lambda!r}")


def check_scale(name: str, scale: float | Tensor) -> None:
    """Raise ValueError unless the scale is a positive, finite number, or a tensor of such numbers."""
    if isinstance(scale, Tensor):
        if not scale.is_floating_point():
            raise ValueError(f"{name} must be a tensor of floats, not {scale.dtype}")
        if not torch.compiler.is_compiling() and not (scale.isfinite() & (scale > 0)).all():
            raise ValueError(f"{name} must be positive and finite everywhere")
    elif not (_is_number(scale) and 0 < scale < math.inf):
        raise ValueError(f"{name} must be a positive number, not {scale!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(values: Tensor) -> Tensor:
    """Return `values` in float32; float64 values and integers in float64, which holds integers up to 2^53."""
    if values.dtype in LARGEST:
        return values
    is_narrow = values.dtype == torch.bool or values.is_floating_point()
    return values.float() if is_narrow else sortable(values).double()


def _without_overflow(values: Tensor, largest: float, sharpness: float) -> Tensor:
    """Return `values` such that their differences, times the sharpness, do not overflow.

    Usually these are the values themselves. Too large ones in float32 are returned in float64. Rows with larger ones
    still are scaled down.

    Args:
        values: [..., n] in float32 or float64.
        largest: the largest magnitude of the values.
        sharpness: the steepness, or one over the temperature.
    """

    def limit(dtype: torch.dtype) -> float:
        return LARGEST[dtype] / 8 / max(1.0, sharpness)

    if largest <= limit(values.dtype):
        return values
    values = values.double()
    row_largest = values.detach().abs().amax(-1, keepdim=True)
    too_large = row_largest > limit(torch.float64)
    return values * torch.where(too_large, limit(torch.float64) / row_largest, 1.0)


def standardized(values: Tensor) -> Tensor:
    """Return `values` [..., n] with mean 0 and standard deviation 1 in each row.

    A constant row becomes zeros, with zero gradient. So is the gradient of a row whose values are too close together
    for a finite one, about 1e-32 in float32: the gradient grows as the differences shrink.

    Raises:
        ValueError: n is 0.
    """
    check_row(values)
    values = as_float(values)
    # A power of two, which changes no digit, for rows whose sum or differences could overflow.
    too_large = values.detach().abs().amax(-1, keepdim=True) > torch.finfo(values.dtype).max * 2.0**-40
    values = values * torch.where(too_large, 2.0**-40, 1.0)
    # A comparison, because a constant row minus its mean is not exactly zero: the mean is rounded.
    varies = (values != values[..., :1]).any(-1, keepdim=True)
    centred = torch.where(varies, values - values.mean(-1, keepdim=True), 0.0)
    largest = centred.detach().abs().amax(-1, keepdim=True)
    has_gradient = largest > torch.finfo(values.dtype).tiny * 2.0**20
    centred = torch.where(has_gradient, centred, centred.detach())
    centred = centred / torch.where(largest > 0, largest, 1.0)  # otherwise squares can overflow or underflow float32
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.where(variance > 0, variance, 1.0).sqrt()
