"""Lets mmengine load its own checkpoints: mmpose's tools resume and test only if PyTorch's safe loader accepts them.

Besides weights, mmengine stores its log: NumPy arrays, and `HistoryBuffer`s, whose statistics are stored as attributes
of a class. The safe loader refuses such objects unless they are listed. Only objects that cannot run code are listed
here: `statistic_of`, which returns these statistics and nothing else, replaces Python's `getattr`.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

ARRAYS = [np.core.multiarray._reconstruct, np.core.multiarray.scalar, np.ndarray, np.dtype]  # type: ignore[attr-defined]
KINDS = (np.float64, np.float32, np.int64, np.int32, np.int16, np.uint8, np.bool_)
STATISTICS = ("mean", "max", "min", "current")


def statistic_of(owner: object, name: str) -> Callable[..., object]:
    """Return a statistic of `HistoryBuffer`.

    Raises:
        UnpicklingError: any other attribute is wanted.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(f"a checkpoint of mmengine does not need the attribute {name} of {owner}")
    return getattr(owner, name)


torch.serialization.add_safe_globals([HistoryBuffer, *ARRAYS, *(type(np.dtype(kind)) for kind in KINDS)])
torch.serialization.add_safe_globals([(statistic_of, "builtins.getattr")])
