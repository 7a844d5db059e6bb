"""Download of WMT16 English-Romanian: archives of plain text and SGML, turned into one sentence per line."""

from __future__ import annotations

import html
import re
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from reloss.runtime.download import discard, fetch
from reloss.runtime.errors import RelossError
from reloss.runtime.files import write_text
from reloss.runtime.progress import say
from reloss_tasks.nmt.config import Data
from reloss_tasks.nmt.texts import text_files

STATMT = "http://data.statmt.org/wmt16/translation-task"
# WMT16's training texts for Romanian, Europarl and SETimes, and its news of 2016. No source states checksums.
ADDRESSES = {
    "europarl.tgz": f"{STATMT}/training-parallel-ep-v8.tgz",
    "setimes.zip": "http://opus.nlpl.eu/download.php?f=SETIMES/v2/moses/en-ro.txt.zip",
    "dev.tgz": f"{STATMT}/dev.tgz",
    "test.tgz": f"{STATMT}/test.tgz",
}
# The files that make up each split: an archive, and the name of its file in each language.
PARTS = {
    "train": (
        ("europarl.tgz", {lang: f"europarl-v8.ro-en.{lang}" for lang in ("en", "ro")}),
        ("setimes.zip", {lang: f"SETIMES.en-ro.{lang}" for lang in ("en", "ro")}),
    ),
    "valid": (("dev.tgz", {"en": "newsdev2016-enro-src.en.sgm", "ro": "newsdev2016-enro-ref.ro.sgm"}),),
    "test": (("test.tgz", {"en": "newstest2016-enro-src.en.sgm", "ro": "newstest2016-enro-ref.ro.sgm"}),),
}
SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)


def fetch_wmt16_en_ro(config: Data, folder: Path) -> None:
    """Download the texts of WMT16 English-Romanian into FOLDER/wmt16_en_ro. Existing splits are kept.

    Raises:
        RelossError: an archive cannot be downloaded, or lacks a file and is removed; running the command again resumes.
    """
    files = text_files(config, folder)
    langs = (config.source, config.target)
    for split, parts in PARTS.items():
        if all(files[split, lang].exists() for lang in langs):
            say(f"{split} exists already")
            continue
        pairs = [pair for archive, members in parts for pair in _pairs(folder / config.name, archive, members, langs)]
        for number, lang in enumerate(langs):
            write_text(files[split, lang], "".join(f"{pair[number]}\n" for pair in pairs))
        for archive, _ in parts:
            (folder / config.name / archive).unlink()


def _pairs(folder: Path, archive: str, members: dict[str, str], langs: tuple[str, str]) -> list[tuple[str, str]]:
    """Download an archive and return its sentence pairs; pairs with an empty sentence are dropped."""
    path = folder / archive
    fetch(ADDRESSES[archive], path, None)
    read = _reader(path)
    try:
        source, target = (_sentences(read(members[lang]), members[lang]) for lang in langs)
        if len(source) != len(target):
            raise RelossError(f"{path} has {len(source)} sentences, but {len(target)} translations")
    except RelossError as error:
        discard(path)
        raise RelossError(f"{error}; the archive was removed: run the command again") from error
    return [pair for pair in zip(source, target, strict=True) if all(pair)]


def _sentences(text: str, name: str) -> list[str]:
    """Return the sentences of a plain text or of SGML."""
    lines = [html.unescape(part) for part in SEGMENT.findall(text)] if name.endswith(".sgm") else text.split("\n")
    return [" ".join(line.split()) for line in lines]


def _reader(path: Path) -> Callable[[str], str]:
    """Return a function that reads a file of the archive, by its name without folders."""

    def read(name: str) -> str:
        try:
            if path.suffix == ".zip":
                with ZipFile(path) as archive:
                    (member,) = [member for member in archive.namelist() if PurePosixPath(member).name == name]
                    return archive.read(member).decode("utf-8")
            with tarfile.open(path) as tar:
                (info,) = [info for info in tar.getmembers() if PurePosixPath(info.name).name == name]
                file = tar.extractfile(info)
                assert file is not None
                return file.read().decode("utf-8")
        except (BadZipFile, tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise RelossError(f"{path} lacks {name}, or is damaged ({error})") from error

    return read
