"""Which wires a sorting network compares, layer by layer.

A network on n wires that sorts every input for every n: take one for the next power of two in which all comparisons
send the smaller value to the lower wire, and give the surplus wires, the last ones, values above all others. They never
move, so their comparisons can be removed.

diffsort removes the first wires of a network that also compares in the opposite direction. There the surplus values
would move, so the result misorders some inputs for most n that are no power of two, from n = 22 on.

Sources: Batcher, "Sorting networks and their applications", AFIPS 1968; Knuth, "The art of computer programming",
volume 3, 1973, section 5.3.4, for the 0-1 principle and odd-even transposition.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Network = Literal["bitonic", "odd_even"]
Fidelity = Literal["corrected", "released"]


class Wiring(NamedTuple):
    """The comparisons in a network of K layers on n wires.

    Attributes:
        partners: K tensors [n], the wire that each wire is compared with in a layer: itself if it is idle.
        signs: [K, n], 1 for the wire that receives the smaller value of its pair, -1 for the other one.
    """

    partners: tuple[Tensor, ...]
    signs: Tensor


@lru_cache(maxsize=64)
def wiring_of(network: Network, n: int, fidelity: Fidelity, device: torch.device) -> Wiring:
    """Return the wiring of a network on n >= 2 wires.

    Args:
        network: `odd_even`, or `bitonic`, which has two variants.
        n: number of wires.
        fidelity: `corrected` sorts every input. `released` has diffsort's comparisons for every n, and warns where
            they can misorder values. Both are the same where diffsort's network sorts.
        device: of the result.
    """
    sorts = network == "odd_even" or diffsort_sorts(n)
    if not sorts and fidelity == "released" and not torch.compiler.is_compiling():
        warnings.warn(
            f"diffsort's bitonic network for n = {n} values can misorder even well separated values; use "
            "fidelity='corrected', or the method odd_even, laplace or pairwise",
            stacklevel=2,
        )
    if network == "odd_even":
        layers = _odd_even(n)
    else:
        layers = _released_bitonic(n) if sorts or fidelity == "released" else _bitonic(n)
    partners, signs = (torch.stack(parts).to(device) for parts in zip(*layers, strict=True))
    return Wiring(partners.unbind(), signs)


def diffsort_sorts(n: int) -> bool:
    """Return whether diffsort's bitonic network on n wires sorts every input, if its comparisons are hard.

    It does for powers of two. Otherwise the binary digits of the number of removed wires decide. The rule was compared
    with all inputs of zeros and ones for n up to 20, as a network that sorts all of them sorts everything; and with
    random ones for n up to 199 and for ten larger n up to 1,025.
    """
    removed_wires = (1 << (n - 1).bit_length()) - n
    return re.fullmatch("0b(1*0*|1+01+|1+0+1)", bin(removed_wires)) is not None


def _bitonic(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the partners and signs [n] of each layer of a bitonic network that sorts for every n.

    A block of two sorted halves is merged by comparing it with its mirror image, then wires at half the distance each
    time. Every lower wire receives the smaller value.
    """
    wires = torch.arange(n, device="cpu")
    layers = []
    for block in range((n - 1).bit_length()):
        for mask in ((2 << block) - 1, *(1 << exponent for exponent in reversed(range(block)))):
            partner = wires ^ mask
            partner = torch.where(partner < n, partner, wires)
            layers.append((partner, torch.where(partner >= wires, 1.0, -1.0)))
    return layers


def _released_bitonic(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the partners and signs [n] of each layer of diffsort's bitonic network.

    It is the network for the next power of two without its first wires and their comparisons.
    """
    blocks = (n - 1).bit_length()
    first = (1 << blocks) - n
    wires = torch.arange(first, 1 << blocks, device="cpu")
    layers = []
    for block in range(blocks):
        descending = wires & (2 << block) > 0
        for distance in (1 << exponent for exponent in reversed(range(block + 1))):
            partner = wires ^ distance
            sign = torch.where((wires & distance > 0) == descending, 1.0, -1.0)
            layers.append((torch.where(partner < first, wires, partner) - first, sign))
    return layers


def _odd_even(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the partners and signs [n] of n layers that compare neighbours, from wire 0 and from wire 1 in turn."""
    layers = []
    for start in (layer % 2 for layer in range(n if n > 2 else 1)):  # the second layer of two wires has no pair
        wires = torch.arange(n, device="cpu") - start
        partner = (wires ^ 1) + start
        idle = (partner < 0) | (partner >= n)
        layers.append((torch.where(idle, wires + start, partner), 1.0 - 2.0 * (wires & 1)))
    return layers
