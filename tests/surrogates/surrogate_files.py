"""Helpers for the tests of a surrogate's files: its losses, its error messages, and files that are no weights."""

import os
from pathlib import Path

import pytest
import torch

from reloss import ClassificationReLoss
from reloss.runtime.errors import RelossError

OPTIONS = {"input": "log_probability", "output": "identity", "width": 16, "scale": 1.75}


def losses(surrogate: ClassificationReLoss) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return surrogate.per_item(torch.randn(4, 8, 3, generator=generator), torch.zeros(4, 8, dtype=torch.long))


def refusal(path: Path, error: type[RelossError] = RelossError, **options) -> str:
    """Return the error message for `path`, after checking that it is one line and names the path."""
    with pytest.raises(error) as caught:
        ClassificationReLoss.from_pretrained(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class Code:
    """Unpickling this object would create the folder `victim`."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


GARBAGE = {"empty": b"", "garbage": b"garbage " * 20, "page": b"<!DOCTYPE html>", "short": b".", "text": b"K" * 20}
