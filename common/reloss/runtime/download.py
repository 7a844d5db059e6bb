"""Downloads that can be resumed and verified.

A download goes to `<path>.part` and is renamed only when it is complete and its checksum is right, so a file at `path`
is always whole. An interrupted download resumes where it stopped, and a size limit stops a server that never ends.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from math import ceil
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from reloss.runtime.errors import RelossError
from reloss.runtime.files import atomic, sha256_of, write_text
from reloss.runtime.progress import progress, say

TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 16
MD5_DIGITS = 32
LIMIT = 64 << 30  # bytes; the largest archive of the tasks, the training images of COCO, has 19 GB


def download_into(out: BinaryIO, url: str, path: Path, limit: int = LIMIT) -> None:
    """Append the content of `url` to the open file `out`, from where it ends; restart if the server cannot resume.

    Args:
        out: opened for writing and seeking.
        url: the address to download from.
        path: the final path of the file, for messages.
        limit: the maximum size of the file in bytes.

    Raises:
        RelossError: the download fails or is cut (the received bytes stay in `out`), or the file exceeds the limit.
    """
    start = out.seek(0, 2)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            if start and response.status != 206:
                out.seek(0)
                out.truncate()
                start = 0
            _check_size(url, start + (response.length or 0), limit)
            steps = ceil((start + (response.length or 0)) / CHUNK)
            with progress(steps, path.name, start // CHUNK) as advance:
                while part := response.read(CHUNK):
                    _check_size(url, out.tell() + len(part), limit)
                    out.write(part)
                    advance()
            if response.length:  # bytes not received: the read of a cut connection ends without an error
                raise ConnectionError(f"the connection ended {response.length} bytes too early")
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError) and error.code == 416 and start:
            return  # the file was already complete
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise RelossError(
            f"cannot download {url}: {reason}; try again, or download it elsewhere and put the file at {path}"
        ) from error


def _check_size(url: str, size: int, limit: int) -> None:
    if size > limit:
        raise RelossError(
            f"{url} is larger than {limit} bytes, more than the expected file, so the download was stopped; check "
            "what is at this address"
        )


def member_path(root: Path, member: str) -> Path:
    """Return the path below `root` for the file `member` of an archive.

    Raises:
        RelossError: the path would lie outside `root`.
    """
    target = root / member
    if not target.resolve().is_relative_to(root.resolve()):
        raise RelossError(
            f"the archive's file {member!r} would lie outside {root}; it was not unpacked. Do not trust this archive: "
            "remove it and fetch it again"
        )
    return target


def unpack(archive: Path, files: Mapping[str, Path]) -> None:
    """Extract the named files of a tar archive to the given paths; all other members are ignored.

    Args:
        archive: the tar file, compressed or not.
        files: the target path of each member, by the member's name.

    Raises:
        RelossError: the archive is damaged or lacks a member, or a file cannot be written.
    """
    try:
        with tarfile.open(archive) as opened:
            for name, path in files.items():
                member = opened.extractfile(name)
                if member is None:
                    raise KeyError(name)
                with atomic(path) as temporary:
                    temporary.write_bytes(member.read())
    except (tarfile.TarError, KeyError, OSError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise RelossError(f"{archive} cannot be unpacked ({reason}); remove it and fetch again") from error


def fetch(url: str, path: Path, checksum: str | None, limit: int = LIMIT) -> None:
    """Download `url` to `path` and verify it; does nothing if `path` exists, and resumes an interrupted download.

    Args:
        url: the address to download from.
        path: the path of the file.
        checksum: the MD5 or SHA-256 sum of the file; the length tells which. With None, the SHA-256 sum of the first
            download is stored in `<path>.sha256`, and later downloads must match it.
        limit: the maximum size of the file in bytes.

    Raises:
        RelossError: the download fails (the received bytes stay in `<path>.part`), the file cannot be written, or its
            checksum is wrong (the file is then removed).
    """
    if path.exists():
        return
    say(f"downloading {url} to {path}")
    part, first_sum = path.with_name(f"{path.name}.part"), _first_sum(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as out:
            download_into(out, url, path, limit)
        expected = checksum or (first_sum.read_text(encoding="utf-8").strip() if first_sum.exists() else None)
        kind = "md5" if expected and len(expected) == MD5_DIGITS else "sha256"
        with part.open("rb") as content:
            actual = hashlib.file_digest(content, kind).hexdigest()
    except OSError as error:
        raise RelossError(
            f"cannot write {part}: {error.strerror or error}; the bytes already received are kept. Free some space or "
            "make the folder writable, then run the same command again"
        ) from error
    if expected is None:
        say(
            f"{path.name}: no source states a checksum; the sum of this first download, {actual}, is stored in "
            f"{first_sum}"
        )
        write_text(first_sum, actual + "\n")
    elif actual != expected:
        part.unlink()
        hint = "" if checksum else f", or remove {first_sum}, the sum of the first download, if that one was bad"
        raise RelossError(
            f"the file from {url} has the {kind.upper()} sum {actual}, not {expected}; it was removed: try again{hint}"
        )
    part.replace(path)


def discard(path: Path) -> None:
    """Remove a fetched file that has the wrong content, and the sum that was stored when it was downloaded first.

    Without the second step, `fetch` would refuse a later, correct download because its sum differs.
    """
    first_sum = _first_sum(path)
    if first_sum.exists() and first_sum.read_text(encoding="utf-8").strip() == sha256_of(path):
        first_sum.unlink()
    path.unlink()


def _first_sum(path: Path) -> Path:
    """Return the file that holds the sum of the first download of `path`."""
    return path.with_name(f"{path.name}.sha256")
