"""Two processes of one run, as torchrun starts them, and what they left."""

from pathlib import Path

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def recorders(home: Path) -> list[int]:
    """Return which processes recorded the bank of an experiment."""
    return sorted({int(path.stem.rpartition("-")[2]) for path in (home / "bank" / "shards").iterdir()})
