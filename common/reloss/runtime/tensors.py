"""Files of named tensors with a checksum, so that a damaged file is refused instead of giving wrong numbers.

The files are safetensors. The checksum lies in their metadata; a file of an earlier version may lack it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reloss.runtime.files import atomic

CHECKSUM = "checksum"
BYTES_CHECKSUM = "crc32"  # in files of earlier versions, of the bytes alone


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their checksum to `path` atomically.

    Raises:
        RelossError: the file cannot be written.
    """
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary, metadata={CHECKSUM: checksum(tensors)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file.

    Raises:
        ValueError: the checksum does not match.
        OSError, SafetensorError, RuntimeError: the file cannot be read.
    """
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 it is no mapping
        metadata = opened.metadata()
    if not is_intact(tensors, metadata):
        raise ValueError("its checksum does not match")
    return tensors


def is_intact(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bool:
    """Return whether tensors have the checksum in the metadata of their file; true if it holds none."""
    stored = metadata or {}
    if CHECKSUM in stored:
        return stored[CHECKSUM] == checksum(tensors)
    return stored.get(BYTES_CHECKSUM) in (None, checksum(tensors, described=False))


def checksum(tensors: Mapping[str, Tensor], described: bool = True) -> str:
    """Return the CRC-32 of the tensors, ordered by name, as 8 hex digits.

    Args:
        tensors: the tensors.
        described: whether it covers their names, dtypes and shapes besides their contents.
    """
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if described:
            crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(_bytes(tensor), crc)
    return f"{crc:08x}"


def content_hash(name: str, parts: Iterable[Tensor]) -> str:
    """Return a hash of the contents of `parts` [n, ...] joined along the first axis, and of their dtype and shape."""
    digest = hashlib.sha256(name.encode())
    for number, part in enumerate(parts):
        if number == 0:
            digest.update(f"{part.dtype} {list(part.shape[1:])}".encode())
        digest.update(_bytes(part))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    view: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return view
