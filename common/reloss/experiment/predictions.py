"""The validation predictions in a record: one file per epoch, written by `Record.save_predictions`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reloss.learning.diagnostics import Checkpoints
from reloss.runtime.errors import RelossError
from reloss.runtime.tensors import load_tensors


def read_predictions(record: Path) -> Checkpoints | None:
    """Return the predictions of all T recorded epochs, or None if there are none.

    Args:
        record: the record's folder.

    Returns:
        Outputs [T, E, ...] in float32 and targets [T, E, ...] of the same E examples.

    Raises:
        RelossError: a file is damaged, or the epochs have predictions for different examples.
    """
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    for path in sorted((record / "predictions").glob("[0-9]*.safetensors")):
        try:
            epoch = load_tensors(path)
            outputs.append(epoch["outputs"].float())
            targets.append(epoch["targets"])
        except Exception as error:  # a damaged file fails in many ways
            raise RelossError(f"the predictions {path} cannot be read ({error}); remove them") from error
    try:
        return (torch.stack(outputs), torch.stack(targets)) if outputs else None
    except RuntimeError as error:
        raise RelossError(f"the predictions in {record} are for different examples ({error}); remove them") from error
