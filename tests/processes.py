"""Two processes, started by torchrun or forked."""

import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from forked import print_to

from reloss.cli import main

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


def reloss_in_two_processes(words: list[str], folder: Path) -> str:
    """Run `reloss` in two processes, with the variables that torchrun sets; return what both printed.

    They are forked from this process, which has imported the framework already.
    """
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outputs = [folder / f"rank-{rank}.txt" for rank in range(2)]

    def child(rank: int) -> None:
        print_to(outputs[rank])
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        AcceleratorState._reset_state(reset_partial_state=True)  # of a run in the test's process, which is alone
        main(words)

    children = [context.Process(target=child, args=(rank,)) for rank in range(2)]
    for process in children:
        process.start()
    for process in children:
        process.join(240)
        process.kill()  # one that hangs
    printed = "".join(output.read_text() for output in outputs)
    assert [process.exitcode for process in children] == [0, 0], printed
    return printed


def run_script(script: Path, words: list[str], output: Path) -> str:
    """Run a Python script in a process that is forked from this one; return what it printed."""

    def child() -> None:
        print_to(output)
        os.chdir(output.parent)
        sys.argv = [str(script), *words]
        runpy.run_path(str(script), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    printed = output.read_text()
    assert process.exitcode == 0, printed
    return printed
