"""Reading and writing files safely.

A file is written under a temporary name in the same folder, flushed to disk, and then renamed. So after a kill or on a
full disk, a reader finds either the old content or the new one, never a part. Readers turn every failure into one
message that names the file and the remedy.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any

import yaml
from safetensors import SafetensorError

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.text import finite

RESTORE = "remove it or restore it from a copy"  # the remedy for a damaged file
MAX_HASHED_FILES = 200  # the most files whose contents `hash_of_files` reads
DEEPEST = 32  # levels of nesting in a file of JSON or YAML
LARGEST = 1_000_000  # values in one file; a YAML alias counts as often as it is used


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, the temporary file replaces `path`.

    If `path` is a symbolic link, the file that it points to is replaced, and the link stays.

    Raises:
        RelossError: the disk is full, or the folder cannot be written. The old content of `path` is untouched.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
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
    for pattern in (".*.tmp", ".tmp??????"):  # the second is the safetensors library's
        for path in folder.rglob(pattern):
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


def remove_folder(path: Path) -> None:
    """Remove a folder with its contents, and its parent if that is empty then.

    Raises:
        OSError: something in it cannot be removed.
    """
    shutil.rmtree(path)
    with suppress(OSError):  # the parent is not empty
        path.parent.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8. What UTF-8 cannot encode, as in some file names, becomes `?`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_output(path: Path, text: str) -> None:
    """Write `text` to a file that the user named: like `write_text`, but also into a named pipe.

    Raises:
        UsageError: `path` is a folder or a device, or would need a new folder at the root of the disk, which is more
            likely a mistake.
        RelossError: the file cannot be written.
    """
    try:
        mode = path.stat().st_mode if path.exists() else 0
        if stat.S_ISFIFO(mode):
            path.write_text(text, encoding="utf-8", errors="replace")
            return
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RelossError(
            f"cannot write {path}: {error.strerror or error}; make it writable, or name another file"
        ) from error
    if mode and not stat.S_ISREG(mode):
        raise UsageError(f"cannot write {path}: it is a {'folder' if path.is_dir() else 'device'}; name a file")
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    if missing and missing[-1].parent == Path(path.absolute().anchor):
        raise UsageError(f"cannot write {path}: there is no folder {missing[-1]}; create it, or name another file")
    write_text(path, text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON, without numbers that are not finite; see `finite`."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


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


def read_data(path: Path) -> Any:
    """Return the content of a JSON file of a data set. Unlike our own files, it may hold any number of values.

    Raises:
        RelossError: the file is missing, unreadable, or not JSON.
    """
    return _parsed(read_text(path), path, "JSON", json.loads)


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
        raise damage(path, f"wrong: {', '.join(wrong) or 'all of it'}")
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


class _YamlLoader(yaml.SafeLoader):
    """Loads plain values. Merge keys are refused: a few lines of them can stand for more values than memory holds."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Raise YAMLError if a key of the mapping is a merge key."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys are not supported")


def load_yaml(text: str, kind: type[yaml.BaseLoader] | type[yaml.SafeLoader] = _YamlLoader) -> Any:
    """Return the values in a YAML text. The two kinds of loader, and their subclasses, cannot run code.

    Raises:
        Exception: the text is not YAML; its damage decides which exception.
    """
    loader = kind(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _parse(path: Path, text: str) -> Any:
    return parse_plain(text, path, "YAML", load_yaml) if path.suffix == ".yaml" else parse_plain(text, path)


def parse_plain(text: str, where: object, language: str = "JSON", parse: Callable[[str], Any] = json.loads) -> Any:
    """Return the values that `text` describes, checked with `check_plain`.

    Args:
        text: the text.
        where: file, or file and line, for the message.
        language: name of the language of the text, for the message.
        parse: reads it.

    Raises:
        RelossError: the text is not in this language, or describes other values.
    """
    value = _parsed(text, where, language, parse)
    check_plain(value, where)
    return value


def _parsed(text: str, where: object, language: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise damage(where, "nested too deeply") from None
    except Exception as error:  # besides its own errors, YAML raises KeyError for `!!bool maybe`, and others
        reason = " ".join(str(error).split())
        raise RelossError(f"{where} cannot be read as {language} ({reason}); {RESTORE}") from error


def check_plain(value: Any, where: object) -> None:
    """Check that `value` can be walked, shown and written as JSON, whatever file it comes from.

    Raises:
        RelossError: `value` holds something other than dictionaries with text keys, lists, text, numbers, booleans and
            None; is nested deeper than DEEPEST levels; or has more than LARGEST values.
    """
    rest, count = [(value, 0)], 0
    while rest:
        item, depth = rest.pop()
        count += 1
        if depth > DEEPEST or count > LARGEST:
            raise damage(where, "nested too deeply" if depth > DEEPEST else "too large")
        if isinstance(item, dict):
            rest += ((part, depth + 1) for pair in item.items() for part in pair)
            plain = all(isinstance(key, str) for key in item)
        elif isinstance(item, list):
            rest += ((part, depth + 1) for part in item)
            plain = True
        else:
            plain = _is_text(item) if isinstance(item, str) else item is None or isinstance(item, int | float)
        if not plain:
            raise damage(where, "values that are not JSON")


def _is_text(text: str) -> bool:
    """Return whether the text can be written as UTF-8: JSON can hold half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def damage(where: object, reason: str) -> RelossError:
    """Return the error for a damaged record."""
    return RelossError(f"{where} is damaged ({reason}); {RESTORE}")


def check_hash(values: Mapping[str, Any], name: str, where: object) -> None:
    """Raise RelossError if `values[name]` differs from its hash in `values`; earlier versions recorded none.

    The hash is `short_hash(values[name])`, under the name `<name>_hash`.
    """
    if values.get(f"{name}_hash") not in (None, short_hash(values.get(name))):
        raise damage(where, f"its {name} differ from the recorded ones")


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
            digest.update(os.fsencode(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n"))
        for path in paths[:: ceil(len(paths) / MAX_HASHED_FILES) or 1]:
            digest.update(bytes.fromhex(sha256_of(path)))
    except OSError as error:
        raise RelossError(f"{path} cannot be read: {error.strerror or error}; make it readable") from error
    return digest.hexdigest()


def short_hash(value: Any, length: int = 12) -> str:
    """Return the first `length` hex digits of the SHA-256 sum of `value` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()[:length]
