"""The number of pairs in the wrong order, in O(n log n) without a loop over values.

A permutation is sorted by its highest binary digit first: all values with a 0 move in front of those with a 1, and
otherwise keep their order. Each 0 passes the 1s before it, and these are the inversions that this digit decides: the
sum of the places that the 0s move. The two halves are then sorted by the next digit in the same way.

The same idea, counting what a merge sort moves, is Knight's algorithm for Kendall's tau: "A computer method for
calculating Kendall's tau with ungrouped data", Journal of the American Statistical Association 1966.
"""

import torch
from torch import Tensor


def count_inversions(permutation: Tensor) -> Tensor:
    """Return the number of pairs i < j with permutation_i > permutation_j, [...] in int64.

    Args:
        permutation: [..., n], the numbers 0 .. n-1 in some order in each row.
    """
    n = permutation.shape[-1]
    digits = (n - 1).bit_length()
    rows = permutation.reshape(-1, n)
    # Values above all others, at the end, complete a power of two and add no inversion.
    surplus = torch.arange(n, 1 << digits, dtype=rows.dtype, device=rows.device)
    values = torch.cat((rows, surplus.expand(len(rows), -1)), -1).flatten()
    places = torch.arange(len(values), device=rows.device)
    count = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for digit in reversed(range(digits)):  # each block of 2 << digit values has as many with a 0 as with a 1
        is_one = values >> digit & 1
        ones = is_one.cumsum(0)
        ones_in_earlier_blocks = places >> (digit + 1) << digit
        target = torch.where(is_one > 0, ones + ((1 << digit) - 1), places - ones).add_(ones_in_earlier_blocks)
        count += (places - target).clamp_(min=0).view(len(rows), 1 << digits).sum(-1)
        values = torch.empty_like(values).scatter_(0, target, values)
    return count.view(permutation.shape[:-1])
