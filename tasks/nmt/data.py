"""The parallel texts of an experiment: checked, downloaded where that is possible, and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import sha256_of
from reloss_tasks.nmt import download
from reloss_tasks.nmt.config import Data
from reloss_tasks.nmt.texts import SPLITS, check_parallel, read_sentences, text_files

DOWNLOADS = ("wmt16_en_ro",)


def check(config: Data, folder: Path) -> str:
    """Return one line that describes the texts.

    Raises:
        RelossError: a file is missing, empty or not UTF-8, or has another number of lines than its counterpart.
    """
    counts: dict[str, dict[Path, int]] = {}
    for (split, _), path in text_files(config, folder).items():
        if not path.exists():
            raise RelossError(
                f"{config.name}: {path} is missing; put parallel texts, one sentence per line, at "
                f"{_expected_files(config, folder)}"
                + (f", or run `reloss data fetch {config.name}`" if config.name in DOWNLOADS else "")
            )
        counts.setdefault(split, {})[path] = sum(1 for _ in read_sentences(path))
    for sizes in counts.values():
        check_parallel(sizes)
    pairs = ", ".join(f"{next(iter(sizes.values()))} {split}" for split, sizes in counts.items())
    return f"{config.name} in {folder / config.name}: {config.source}-{config.target} sentence pairs: {pairs}"


def fetch(config: Data, folder: Path) -> None:
    """Download the texts into FOLDER/<name>. Existing files are kept.

    Raises:
        UsageError: these texts are not downloaded; the message says where to put them.
        RelossError: an archive cannot be downloaded or lacks a file; running the command again resumes.
    """
    if config.name not in DOWNLOADS:
        raise UsageError(
            f"{config.name} cannot be downloaded; put its texts at {_expected_files(config, folder)}, one sentence per "
            "line"
        )
    download.fetch_wmt16_en_ro(config, folder)


def _expected_files(config: Data, folder: Path) -> str:
    return f"{folder / config.name}/{{{','.join(SPLITS)}}}.{{{config.source},{config.target}}}"


def fingerprint(config: Data, folder: Path) -> str:
    """Return a hash of the texts.

    Raises:
        RelossError: see `check`.
    """
    check(config, folder)
    return hash_of_texts(text_files(config, folder).values())


def hash_of_texts(paths: Iterable[Path]) -> str:
    """Return a hash of the contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()[:12]
