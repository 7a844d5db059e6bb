"""The plug-in for fairseq: `--user-dir tasks/nmt/plugin` adds our criteria and tasks, and lets checkpoints load.

fairseq imports this folder and knows the new criteria and tasks by the names that they are registered under.
"""

import argparse

import numpy as np
import torch

import reloss_tasks.nmt.losses
import reloss_tasks.nmt.watched_tasks  # noqa: F401

# fairseq's checkpoints hold the command line as a Namespace and, with --eval-bleu, n-gram counts as NumPy arrays (with
# several processes in float64). PyTorch's safe loader refuses both unless they are listed. They only hold values.
ARRAYS = [np.core.multiarray._reconstruct, np.ndarray, np.dtype]  # type: ignore[attr-defined]
COUNTS = [type(np.dtype(kind)) for kind in (np.int64, np.float64)]
torch.serialization.add_safe_globals([argparse.Namespace, *ARRAYS, *COUNTS])
