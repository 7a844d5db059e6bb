"""`--device`: the device that a command computes on.

Every framework asks PyTorch which GPUs there are and takes the first one. So the choice is made where PyTorch looks: in
the variable CUDA_VISIBLE_DEVICES, before anything in this process, or in a process it starts, uses a GPU.
"""

from __future__ import annotations

import os
import re

from reloss.runtime.errors import UsageError


def choose_device(name: str) -> None:
    """Make `name` the device of this process and of those it starts.

    Args:
        name: one of `cpu`, `cuda` and `cuda:N`, or empty to change nothing. `cuda` requires a GPU: the first one, or
            each process's own under torchrun. `cuda:N` is the visible GPU with index N.

    Raises:
        UsageError: no such name or GPU, or a number for several processes.
    """
    if not name:
        return
    if not (match := re.fullmatch(r"cpu|cuda(?::(\d+))?", name)):
        raise UsageError(f"--device takes cpu, cuda or cuda:N, such as cuda:1, not '{name}'")
    number = match[1]
    if number is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--device {name} is for one process; torchrun gives each process a GPU of its own")
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if number is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else []
        known = names[int(number) : int(number) + 1] if visible is not None else [str(int(number))]
        os.environ["CUDA_VISIBLE_DEVICES"] = "".join(known)
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"there is no GPU {name} here; `reloss doctor` lists the GPUs, and --device cpu needs none")
