"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

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

MEND = "remove it or restore it from a copy"
SAMPLED = 200  # files of which a hash of many reads the contents


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block ends well, it takes the place of `path`.

    Raises:
        RelossError: the disk is full, or the folder cannot be written; what stood at `path` before is untouched.
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
        with suppress(OSError):  # as where a parent is a file
            temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove what writes that a kill cut short left below `folder`, which nobody else may be writing to."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def _disk_error(error: BaseException | None) -> str:
    """Return what the system said, if it made a write fail; libraries wrap that in errors of their own."""
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
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        RelossError: the file is missing, cannot be read, or is not in UTF-8.
    """
    text = _text(path)
    if text is None:
        raise RelossError(f"{path} does not exist")
    return text


def read_json(path: Path) -> Any:
    """Return what the JSON file at `path` holds.

    Raises:
        RelossError: the file is missing, cannot be read, or is not JSON.
    """
    return _parsed(path, read_text(path))


def read_object(path: Path, kinds: Mapping[str, type | UnionType] = MappingProxyType({})) -> dict[str, Any]:
    """Return the object in a JSON file, or in a YAML file if its name ends in .yaml; empty if there is no file.

    Args:
        path: the file.
        kinds: what the object must have, and of which types.

    Raises:
        RelossError: the file cannot be read, or holds something else; the message names what is wrong.
    """
    text = _text(path)
    if text is None:
        return {}
    value = _parsed(path, text)
    found = value if isinstance(value, dict) else {}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong or not isinstance(value, dict):
        raise RelossError(f"{path} is damaged (wrong: {', '.join(wrong) or 'all of it'}); {MEND}")
    return found


def _text(path: Path) -> str | None:
    """Return the text of a file, or None if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RelossError(f"{path} cannot be read ({error.strerror or error}); make it readable") from error
    except ValueError as error:
        raise RelossError(f"{path} cannot be read as text ({error}); {MEND}") from error


def _parsed(path: Path, text: str) -> Any:
    name, parse = ("YAML", yaml.safe_load) if path.suffix == ".yaml" else ("JSON", json.loads)
    try:
        return parse(text)
    except (ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise RelossError(f"{path} cannot be read as {name} ({said}); {MEND}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_files(root: Path, paths: Sequence[Path]) -> str:
    """Return a hash of the names below `root` and the sizes of files, and of what is in them.

    Of more than SAMPLED files, the contents are read of as many at most, spread evenly: a change of a few others that
    leaves their sizes is not seen.

    Raises:
        RelossError: one cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in paths:
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        for path in paths[:: ceil(len(paths) / SAMPLED) or 1]:
            digest.update(bytes.fromhex(sha256_of(path)))
    except OSError as error:
        raise RelossError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def short_hash(value: Any, length: int = 12) -> str:
    """Return the first `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]
