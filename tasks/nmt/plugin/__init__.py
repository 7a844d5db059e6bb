"""What fairseq imports with `--user-dir tasks/nmt/plugin`: criteria and tasks, and checkpoints that load again."""

import argparse

import torch

import tasks.nmt.criteria
import tasks.nmt.recording  # noqa: F401

# fairseq keeps the arguments of the command line in its checkpoints, which a safe loader refuses unless it is told.
torch.serialization.add_safe_globals([argparse.Namespace])
