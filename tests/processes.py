"""Runs of two processes, started by torchrun."""

from pathlib import Path

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def recorders(home: Path) -> list[int]:
    """Return the ranks of the processes that recorded an experiment's bank."""
    return sorted({int(path.stem.rpartition("-")[2]) for path in (home / "bank" / "shards").iterdir()})
