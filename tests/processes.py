"""Two processes, started by torchrun or forked."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def recorders(home: Path) -> list[int]:
    """Return the ranks of the processes that recorded an experiment's bank."""
    return sorted({int(path.stem.rpartition("-")[2]) for path in (home / "bank" / "shards").iterdir()})


def in_two_processes(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return the value of `function` in each of two processes that share a group over gloo."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child(rank: int) -> None:
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
            )
            answers.put((rank, function(*arguments)))
        except BaseException:
            answers.put((rank, traceback.format_exc()))

    children = [context.Process(target=child, args=(rank,), daemon=True) for rank in range(2)]
    for process in children:
        process.start()
    by_rank = dict(answers.get() for _ in children)
    for process in children:
        process.join()
    return [by_rank[rank] for rank in range(2)]
