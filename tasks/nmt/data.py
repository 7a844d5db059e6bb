"""The data of machine translation: parallel texts, their subwords, and what fairseq makes of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from reloss.errors import RelossError, UsageError
from reloss.files import sha256_of, short_hash, write_text
from reloss.progress import say
from tasks.nmt import commands
from tasks.nmt.config import Data

SPLITS = ("train", "valid", "test")
SUBWORDS = "subwords.model"
FETCHED = ("wmt16_en_ro",)


def text_files(config: Data, folder: Path) -> dict[tuple[str, str], Path]:
    """Return the text file of each split and language."""
    root = folder / config.name
    return {(split, lang): root / f"{split}.{lang}" for split in SPLITS for lang in (config.source, config.target)}


def describe(config: Data, folder: Path) -> str:
    """Return what was found.

    Raises:
        RelossError: a file is missing, empty, or has not as many lines as its counterpart.
    """
    counts: dict[str, dict[str, int]] = {}
    for (split, lang), path in text_files(config, folder).items():
        if not path.exists():
            raise RelossError(
                f"{config.name}: {path} is missing; put parallel texts, a sentence a line, at {folder / config.name}/"
                f"{{{','.join(SPLITS)}}}.{{{config.source},{config.target}}}"
                + (f", or `reloss data fetch {config.name}`" if config.name in FETCHED else "")
            )
        with path.open("rb") as lines:
            counts.setdefault(split, {})[lang] = sum(1 for _ in lines)
    for split, found in counts.items():
        if len(set(found.values())) > 1 or 0 in found.values():
            shown = " and ".join(f"{number} lines in {split}.{lang}" for lang, number in found.items())
            raise RelossError(f"{config.name}: {shown} of {folder / config.name}: they must be parallel and not empty")
    shown = ", ".join(f"{found[config.source]} {split}" for split, found in counts.items())
    return f"{config.name} in {folder / config.name}: {config.source}-{config.target} sentence pairs: {shown}"


def fingerprint(config: Data, folder: Path) -> str:
    """Return a hash over the texts."""
    describe(config, folder)
    return _hash_of(text_files(config, folder).values())


def _hash_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()[:12]


def prepare(config: Data, folder: Path, runs: Path) -> Path:
    """Return the folder of the binarised data, made unless it is there: RUNS/nmt/prepared/<name>-<hash>.

    It depends on the texts, the subwords, and the teacher's translations where targets are distilled. Beside the
    binarised data it holds `texts/`, the plain ones that are scored against, and the subword model.

    Raises:
        RelossError: texts are missing, or the subwords cannot be learned.
        UsageError: the teacher that is distilled from is not there.
    """
    files = text_files(config, folder)
    teacher, raw = None, None
    if config.distilled:
        teacher = _teachers_translations(config, runs)
        raw = prepare(config.model_copy(update={"distilled": False}), folder, runs)  # subwords are those of the texts
    described = [config.model_dump(exclude={"workers", "teacher"}), fingerprint(config, folder)]
    if teacher is not None:
        described.append(_hash_of([teacher]))
    target = runs / "nmt" / "prepared" / f"{config.name}-{short_hash(described)}"
    if not target.exists():
        say(f"preparing {target}")
        if teacher is not None:
            files[("train", config.target)] = teacher
        making = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(making, ignore_errors=True)
        try:
            _make(config, files, making, raw)
            with suppress(OSError):  # another run was faster
                making.rename(target)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return target


def teachers_record(config: Data, runs: Path) -> Path:
    """Return the folder of the teacher's record.

    Raises:
        UsageError: there is no finished teacher in it.
    """
    record = runs / config.teacher
    if not config.teacher or not (record / "checkpoint" / "translator.pt").exists():
        experiment, _, rest = config.teacher.partition("/label_smoothing")
        raise UsageError(
            f"no finished teacher at {record}: reloss run {experiment} --loss label_smoothing "
            f"--seed {rest.rpartition('seed')[2] or 0}; or name another with data.teacher; or do without: "
            "--set data.distilled=false train.from_teacher=false"
        )
    return record


def _teachers_translations(config: Data, runs: Path) -> Path:
    """Return the file of the teacher's translations of the training sentences, made unless it is there."""
    from tasks.nmt.training import translate_training_set

    record = teachers_record(config, runs)
    path = record / "distilled" / f"train.{config.target}"
    if not path.exists():
        say(f"the teacher {record} translates the sentences to train on")
        write_text(path, "".join(f"{line}\n" for line in translate_training_set(record)))
    return path


def _make(config: Data, files: dict[tuple[str, str], Path], target: Path, like: Path | None) -> None:
    """Fill `target`, with the subwords and the dictionary of the prepared folder `like` if there is one."""
    import sentencepiece

    texts, pieces = target / "texts", target / "pieces"
    for (split, lang), path in files.items():
        write_text(texts / f"{split}.{lang}", "".join(_lines(path, config.lowercase)))
    langs = (config.source, config.target)
    if like is None:
        _learn_subwords(config, [texts / f"train.{lang}" for lang in langs], target / "subwords")
    else:
        shutil.copy(like / SUBWORDS, target / SUBWORDS)
    splitter = sentencepiece.SentencePieceProcessor(model_file=str(target / SUBWORDS))
    for split, lang in files:
        words = splitter.encode(read_lines(texts / f"{split}.{lang}"), out_type=str)
        write_text(pieces / f"{split}.{lang}", "".join(" ".join(line) + "\n" for line in words))
    from tasks.nmt.fairseq_commands import run_command

    dictionary = like / f"dict.{config.source}.txt" if like is not None else None
    run_command("preprocess", commands.preprocess(config, pieces, target, dictionary), target / "fairseq.log")
    shutil.rmtree(pieces)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text of one sentence a line; only a line feed ends a line."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _lines(path: Path, lowercase: bool) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = " ".join(line.split())
            yield (text.lower() if lowercase else text) + "\n"


def _learn_subwords(config: Data, texts: list[Path], model: Path) -> None:
    """Learn a BPE on both languages together."""
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(path) for path in texts],
            model_prefix=str(model),
            vocab_size=config.subwords,
            model_type="bpe",
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RelossError(
            f"sentencepiece cannot learn {config.subwords} subwords of {config.name}: {error}; set data.subwords"
        ) from error
