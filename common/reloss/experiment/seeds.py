"""Seeds: the global generators seeded once, and independent streams derived from one number.

A run has one seed. Each random stream (initialisation, data order, ...) hashes it with the stream's name, so that one
stream can draw more or fewer numbers without changing another.
"""

import hashlib
import random

import numpy as np
import torch

from reloss.runtime import distributed


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the seed of the stream called `names`: the same on every machine, independent of other streams."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def own_seed(seed: int, *names: str | int) -> int:
    """Return a seed that differs between the processes of a run; the main one has the seed of a single process."""
    rank = distributed.rank()
    return derive_seed(seed, *names, rank) if rank else derive_seed(seed, *names)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators, for frameworks that draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (frameworks draw from the global generator)
    torch.manual_seed(seed)
