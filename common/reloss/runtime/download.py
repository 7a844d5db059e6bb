"""Downloads: whole or not there, of a limited size, and gone on with where they were cut."""

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
LIMIT = 64 << 30  # bytes; the largest archive that is fetched, COCO's training images, has 19 GB


def download_into(out: BinaryIO, url: str, path: Path, limit: int = LIMIT) -> None:
    """Append what is at `url` to `out`, an open file, from where it ends; begin anew if the server cannot do that.

    Args:
        out: opened to write and seek.
        url: where it is.
        path: where it will lie, for messages.
        limit: of its size in bytes.

    Raises:
        RelossError: it cannot be had, or not all of it (what came is kept in `out`), or it is larger than the limit.
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
            if response.length:  # what is left: a connection that was cut ends like one that is through
                raise ConnectionError(f"the connection ended {response.length} bytes too early")
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError) and error.code == 416 and start:
            return  # nothing is left to be sent
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise RelossError(
            f"cannot download {url}: {reason}; try again, or download it elsewhere and put the file at {path}"
        ) from error


def _check_size(url: str, size: int, limit: int) -> None:
    if size > limit:
        raise RelossError(f"{url} is larger than {limit} bytes, which it should not be; nothing more of it was fetched")


def inside(root: Path, member: str) -> Path:
    """Return where an archive's file `member` goes below `root`.

    Raises:
        RelossError: it would lie elsewhere.
    """
    target = root / member
    if not target.resolve().is_relative_to(root.resolve()):
        raise RelossError(f"the archive's file {member!r} would lie outside {root}; it was not unpacked")
    return target


def unpack(archive: Path, files: Mapping[str, Path]) -> None:
    """Write files of a tar archive, by their names in it, to where they go; nothing else that it holds is written.

    Raises:
        RelossError: it is damaged or lacks one, or one cannot be written.
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
    """Download `url` to `path` unless it is there, going on from what an earlier call left, and verify it.

    Args:
        url: where it is.
        path: where it goes.
        checksum: MD5 or SHA-256 of the file, told apart by their lengths. Where no source states one, the SHA-256 sum
            of the first download is kept in `<path>.sha256`, and later ones are held against it.
        limit: of its size in bytes, where it is known.

    Raises:
        RelossError: it cannot be had (what came is kept in `<path>.part`), cannot be written, or is not the file of
            that checksum (it is then removed).
    """
    if path.exists():
        return
    say(f"downloading {url} to {path}")
    part, kept = (path.with_name(f"{path.name}.{ending}") for ending in ("part", "sha256"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as out:
            download_into(out, url, path, limit)
        expected = checksum or (kept.read_text(encoding="utf-8").strip() if kept.exists() else None)
        kind = "md5" if expected and len(expected) == MD5_DIGITS else "sha256"
        with part.open("rb") as written:
            found = hashlib.file_digest(written, kind).hexdigest()
    except OSError as error:
        raise RelossError(f"cannot write {part}: {error.strerror or error}; what came is kept") from error
    if expected is None:
        say(f"{path.name}: no source states a checksum; that of this first download, {found}, is kept in {kept}")
        write_text(kept, found + "\n")
    elif found != expected:
        part.unlink()
        first = "" if checksum else f", or remove {kept}, the sum of the first download, if that one was bad"
        raise RelossError(
            f"{url} gave a file with the {kind.upper()} sum {found}, not {expected}; it was removed: try again{first}"
        )
    part.replace(path)


def discard(path: Path) -> None:
    """Remove a file that was fetched and is not what it should be, with its sum if that was kept as a first download's.

    The next call of `fetch` then takes what comes, and does not hold it against the sum of rubbish.
    """
    kept = path.with_name(f"{path.name}.sha256")
    if kept.exists() and kept.read_text(encoding="utf-8").strip() == sha256_of(path):
        kept.unlink()
    path.unlink()
