"""The data of machine translation: parallel texts, their subwords, and what fairseq makes of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json, sha256_of, short_hash, write_text
from reloss.runtime.progress import say
from reloss_tasks.nmt import commands
from reloss_tasks.nmt.config import Data

SPLITS = ("train", "valid", "test")
SUBWORDS = "subwords.model"
# Subwords of a sentence. The models have 1,024 places, and a non-autoregressive one may make a translation 128 longer.
LONGEST = 800
FETCHED = ("wmt16_en_ro",)


def text_files(config: Data, folder: Path) -> dict[tuple[str, str], Path]:
    """Return the text file of each split and language."""
    root = folder / config.name
    return {(split, lang): root / f"{split}.{lang}" for split in SPLITS for lang in (config.source, config.target)}


def check(config: Data, folder: Path) -> str:
    """Return what was found.

    Raises:
        RelossError: a file is missing, empty, not UTF-8, or has not as many lines as its counterpart.
    """
    counts: dict[str, dict[Path, int]] = {}
    for (split, _), path in text_files(config, folder).items():
        if not path.exists():
            raise RelossError(
                f"{config.name}: {path} is missing; put parallel texts, a sentence a line, at {folder / config.name}/"
                f"{{{','.join(SPLITS)}}}.{{{config.source},{config.target}}}"
                + (f", or `reloss data fetch {config.name}`" if config.name in FETCHED else "")
            )
        counts.setdefault(split, {})[path] = sum(1 for _ in _sentences(path))
    for found in counts.values():
        _check_parallel(found)
    shown = ", ".join(f"{next(iter(found.values()))} {split}" for split, found in counts.items())
    return f"{config.name} in {folder / config.name}: {config.source}-{config.target} sentence pairs: {shown}"


def _check_parallel(counts: Mapping[Path, int]) -> None:
    """Refuse the texts of a split, given how many lines each has, unless they are parallel."""
    if len(set(counts.values())) > 1 or 0 in counts.values():
        shown = " and ".join(f"{number} lines in {path}" for path, number in counts.items())
        raise RelossError(f"{shown}: they must be parallel and not empty")


def fingerprint(config: Data, folder: Path) -> str:
    """Return a hash over the texts."""
    check(config, folder)
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
        RelossError: texts are missing or not parallel, a sentence is too long, or the subwords cannot be learned.
        UsageError: the teacher that is distilled from is not there, or was trained on other texts.
    """
    files = text_files(config, folder)
    teacher, raw = None, None
    if config.distilled:
        teacher = _teachers_translations(config, folder, runs)
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


def teachers_record(config: Data, folder: Path, runs: Path) -> Path:
    """Return the folder of the teacher's record.

    Raises:
        UsageError: none is named, it is not finished, or it was trained on other texts than those in `folder`.
    """
    without = "or do without: --set data.distilled=false train.from_teacher=false"
    if not config.teacher:
        raise UsageError(
            f"data.teacher is empty: name the record in {runs} of an autoregressive model of {config.source}-"
            f"{config.target}, such as nmt/multi30k_de_en_at/label_smoothing/seed0; {without}"
        )
    record = runs / config.teacher
    if not (record / "checkpoint" / "translator.pt").exists():
        experiment, _, rest = config.teacher.partition("/label_smoothing")
        raise UsageError(
            f"no finished teacher at {record}: reloss run {experiment} --loss label_smoothing "
            f"--seed {rest.rpartition('seed')[2] or 0}; or name another with data.teacher; {without}"
        )
    learned_of, now = read_json(record / "environment.json").get("data"), fingerprint(config, folder)
    if learned_of != now:
        raise UsageError(
            f"the teacher {record} was trained on other texts than those in {folder / config.name}: their fingerprint "
            f"was {learned_of}, now {now}; train one on these, and name it with data.teacher; {without}"
        )
    return record


def _teachers_translations(config: Data, folder: Path, runs: Path) -> Path:
    """Return the file of the teacher's translations of the training sentences, made unless it is there."""
    from reloss_tasks.nmt.training import translate_training_set

    record = teachers_record(config, folder, runs)
    path = record / "distilled" / f"train.{config.target}"
    if not path.exists():
        say(f"the teacher {record} translates the sentences to train on")
        write_text(path, "".join(f"{line}\n" for line in translate_training_set(record, folder, runs)))
    return path


def _make(config: Data, files: dict[tuple[str, str], Path], target: Path, like: Path | None) -> None:
    """Fill `target`, with the subwords and the dictionary of the prepared folder `like` if there is one."""
    import sentencepiece

    texts, pieces = target / "texts", target / "pieces"
    for (split, lang), path in files.items():
        lines = (text.lower() if config.lowercase else text for text in _sentences(path))
        write_text(texts / f"{split}.{lang}", "".join(f"{line}\n" for line in lines))
    langs = (config.source, config.target)
    if like is None:
        _learn_subwords(config, [texts / f"train.{lang}" for lang in langs], target / "subwords")
    else:
        shutil.copy(like / SUBWORDS, target / SUBWORDS)
    splitter = sentencepiece.SentencePieceProcessor(model_file=str(target / SUBWORDS))
    for split in SPLITS:
        counts = {}
        for lang in langs:
            words = splitter.encode(read_lines(texts / f"{split}.{lang}"), out_type=str)
            _check_lengths(words, files[split, lang])
            counts[files[split, lang]] = len(words)
            write_text(pieces / f"{split}.{lang}", "".join(" ".join(line) + "\n" for line in words))
        _check_parallel(counts)
    from reloss_tasks.nmt.fairseq_commands import run_command

    dictionary = like / f"dict.{config.source}.txt" if like is not None else None
    run_command("preprocess", commands.preprocess(config, pieces, target, dictionary), target / "fairseq.log")
    shutil.rmtree(pieces)


def _check_lengths(sentences: Sequence[Sequence[str]], path: Path) -> None:
    """Refuse a text, given its sentences' subwords, of which some are too long for the models.

    fairseq would not train on them, and refuse to translate them when all is trained.
    """
    long = [number for number, words in enumerate(sentences, 1) if len(words) > LONGEST]
    if long:
        raise RelossError(
            f"{path}: sentences of more than {LONGEST:,} subwords, which is too long for the models, are on "
            f"{len(long)} lines: {', '.join(map(str, long[:10]))}{', ...' if len(long) > 10 else ''}; remove or split "
            "them, and their translations"
        )


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text of one sentence a line; only a line feed ends a line."""
    return path.read_bytes().decode("utf-8").split("\n")[:-1]


def _sentences(path: Path) -> Iterator[str]:
    """Yield the sentences of a text, their words separated by single spaces; only a line feed ends a line.

    Raises:
        RelossError: a line is not UTF-8.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield " ".join(line.decode("utf-8").split())
            except UnicodeDecodeError as error:
                raise RelossError(f"{path}: line {number} is not UTF-8 ({error.reason}); convert the file") from error


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
