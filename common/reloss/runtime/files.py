"""Reading and writing files safely.

A file is written under a temporary name in the same folder, flushed to disk, and then renamed. So after a kill or on a
full disk, a reader finds either the old content or the new one, never a part. Readers turn every failure into one
message that names the file and the remedy.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any

import yaml
from safetensors import SafetensorError

from reloss.runtime.errors import RelossError

RESTORE = "remove it or restore it from a copy"  # the remedy for a damaged file
MAX_HASHED_FILES = 200  # the most files whose contents `hash_of_files` reads


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, the temporary file replaces `path`.

    Raises:
        RelossError: the disk is full, or the folder cannot be written. The old content of `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except RelossError:
        raise
    except Exception as error:
        if cause := _disk_error(error):
            raise RelossError(f"cannot write {path}: {cause}; nothing recorded before was lost") from error
        raise
    finally:
        with suppress(OSError):  # such as when a parent folder is a file
            temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed writers left below `folder`. No other process may write there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def _disk_error(error: BaseException | None) -> str:
    """Return the system's message if `error` is a failed write, else "". Libraries wrap it in their own errors."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, SafetensorError) and "I/O error" in str(error):
            return str(error)
        error = error.__context__
    return ""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        RelossError: the file is missing, unreadable, or not UTF-8.
    """
    text = _text(path)
    if text is None:
        raise RelossError(f"{path} does not exist")
    return text


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        RelossError: the file is missing, unreadable, or not JSON.
    """
    return _parse(path, read_text(path))


def read_object(path: Path, types: Mapping[str, type | UnionType] = MappingProxyType({})) -> dict[str, Any]:
    """Return the object in a JSON file, or in a YAML file if the name ends in .yaml; empty if the file is missing.

    Args:
        path: the file.
        types: the keys that the object must have, and the type of each value.

    Raises:
        RelossError: the file is unreadable, holds no object, or a value is missing or has the wrong type; the message
            names the keys.
    """
    text = _text(path)
    if text is None:
        return {}
    content = _parse(path, text)
    fields = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in types.items() if not isinstance(fields.get(name), kind)]
    if wrong or not isinstance(content, dict):
        raise RelossError(f"{path} is damaged (wrong: {', '.join(wrong) or 'all of it'}); {RESTORE}")
    return fields


def _text(path: Path) -> str | None:
    """Return the text of a file, or None if the file is missing."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RelossError(f"{path} cannot be read ({error.strerror or error}); make it readable") from error
    except ValueError as error:
        raise RelossError(f"{path} cannot be read as text ({error}); {RESTORE}") from error


def _parse(path: Path, text: str) -> Any:
    name, parse = ("YAML", yaml.safe_load) if path.suffix == ".yaml" else ("JSON", json.loads)
    try:
        return parse(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RelossError(f"{path} cannot be read as {name} ({reason}); {RESTORE}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_files(root: Path, paths: Sequence[Path]) -> str:
    """Return a hash of the files' names relative to `root`, their sizes and their contents.

    With more than MAX_HASHED_FILES files, only that many are read, spread evenly over `paths`. A change to one of the
    others is detected only if the size of the file changes.

    Raises:
        RelossError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in paths:
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        for path in paths[:: ceil(len(paths) / MAX_HASHED_FILES) or 1]:
            digest.update(bytes.fromhex(sha256_of(path)))
    except OSError as error:
        raise RelossError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def short_hash(value: Any, length: int = 12) -> str:
    """Return the first `length` hex digits of the SHA-256 sum of `value` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]
