"""Downloads of parallel texts."""

from __future__ import annotations

import html
import re
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from reloss.runtime.download import discard, fetch
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import write_text
from reloss.runtime.progress import say
from reloss_tasks.nmt.config import Data
from reloss_tasks.nmt.data import text_files

STATMT = "http://data.statmt.org/wmt16/translation-task"
# The training texts that WMT16 names for Romanian, Europarl and SETimes, and its news of 2016. No source states sums.
ADDRESSES = {
    "europarl.tgz": f"{STATMT}/training-parallel-ep-v8.tgz",
    "setimes.zip": "http://opus.nlpl.eu/download.php?f=SETIMES/v2/moses/en-ro.txt.zip",
    "dev.tgz": f"{STATMT}/dev.tgz",
    "test.tgz": f"{STATMT}/test.tgz",
}
# What of each archive makes each split, by language.
PARTS = {
    "train": (
        ("europarl.tgz", {lang: f"europarl-v8.ro-en.{lang}" for lang in ("en", "ro")}),
        ("setimes.zip", {lang: f"SETIMES.en-ro.{lang}" for lang in ("en", "ro")}),
    ),
    "valid": (("dev.tgz", {"en": "newsdev2016-enro-src.en.sgm", "ro": "newsdev2016-enro-ref.ro.sgm"}),),
    "test": (("test.tgz", {"en": "newstest2016-enro-src.en.sgm", "ro": "newstest2016-enro-ref.ro.sgm"}),),
}
SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)


def fetch_texts(config: Data, folder: Path) -> None:
    """Download the texts of WMT16 English-Romanian into FOLDER/wmt16_en_ro; what is there already stays.

    Raises:
        UsageError: other texts, which are not downloaded.
        RelossError: an archive cannot be downloaded or lacks a file (it is then removed); the same call goes on from
            there.
    """
    if config.name != "wmt16_en_ro":
        raise UsageError(
            f"{config.name} is not fetched; put its texts at {folder / config.name}/{{train,valid,test}}."
            f"{{{config.source},{config.target}}}, a sentence a line"
        )
    files = text_files(config, folder)
    for split, parts in PARTS.items():
        langs = (config.source, config.target)
        if all(files[split, lang].exists() for lang in langs):
            say(f"{split} is there")
            continue
        pairs = [pair for archive, members in parts for pair in _pairs(folder / config.name, archive, members, langs)]
        for number, lang in enumerate(langs):
            write_text(files[split, lang], "".join(f"{pair[number]}\n" for pair in pairs))
        for archive, _ in parts:
            (folder / config.name / archive).unlink()


def _pairs(folder: Path, archive: str, members: dict[str, str], langs: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the sentence pairs of an archive, downloaded first, without those of which one is empty."""
    path = folder / archive
    fetch(ADDRESSES[archive], path, None)
    read = _reader(path)
    try:
        source, target = (_sentences(read(members[lang]), members[lang]) for lang in langs)
        if len(source) != len(target):
            raise RelossError(f"{path} has {len(source)} sentences, but {len(target)} translations")
    except RelossError as error:
        discard(path)
        raise RelossError(f"{error}; it was removed: fetch again") from error
    return [pair for pair in zip(source, target, strict=True) if all(pair)]


def _sentences(text: str, name: str) -> list[str]:
    """Return the sentences of a plain text or of SGML, each on one line."""
    found = [html.unescape(part) for part in SEGMENT.findall(text)] if name.endswith(".sgm") else text.split("\n")
    return [" ".join(sentence.split()) for sentence in found]


def _reader(path: Path) -> Callable[[str], str]:
    """Return what reads a file of the archive, by its name without folders."""

    def read(name: str) -> str:
        try:
            if path.suffix == ".zip":
                with ZipFile(path) as opened:
                    (member,) = [each for each in opened.namelist() if PurePosixPath(each).name == name]
                    return opened.read(member).decode("utf-8")
            with tarfile.open(path) as opened_tar:
                (found,) = [each for each in opened_tar.getmembers() if PurePosixPath(each.name).name == name]
                extracted = opened_tar.extractfile(found)
                assert extracted is not None
                return extracted.read().decode("utf-8")
        except (BadZipFile, tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise RelossError(f"{path} lacks {name}, or is damaged ({error})") from error

    return read
