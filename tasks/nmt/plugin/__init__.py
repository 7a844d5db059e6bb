"""What fairseq imports with `--user-dir tasks/nmt/plugin`: criteria and tasks, and checkpoints that load again."""

import argparse

import numpy as np
import torch

import reloss_tasks.nmt.losses
import reloss_tasks.nmt.recording  # noqa: F401

# fairseq keeps the arguments of the command line in its checkpoints, and with --eval-bleu counts of n-grams as arrays
# (of several processes in float64), which a safe loader refuses unless it is told. All of these only hold values.
ARRAYS = [np.core.multiarray._reconstruct, np.ndarray, np.dtype]  # type: ignore[attr-defined]
COUNTS = [type(np.dtype(kind)) for kind in (np.int64, np.float64)]
torch.serialization.add_safe_globals([argparse.Namespace, *ARRAYS, *COUNTS])
