"""From plain texts to what fairseq trains on: subwords, learned on both languages, and binarised sentences.

The prepared folder is named by a hash of everything it depends on, so runs share it and a change makes a new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import short_hash, write_text
from reloss.runtime.progress import say
from reloss_tasks.nmt import arguments
from reloss_tasks.nmt.config import Data
from reloss_tasks.nmt.data import fingerprint, hash_of_texts
from reloss_tasks.nmt.fairseq_commands import run_command
from reloss_tasks.nmt.texts import SPLITS, check_parallel, read_lines, read_sentences, text_files

FORMAT = 2  # version of the prepared files
SUBWORDS = "subwords.model"
# fairseq's own symbols. A subword of the same spelling would be read as one, such as the end of the sentence.
SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
# Most subwords in a sentence. The models take 1,024, and a translation by a NAT may be 128 subwords longer.
LONGEST = 800


def prepare(config: Data, folder: Path, runs: Path, distilled: Path | None = None) -> Path:
    """Return the folder of the prepared data, RUNS/nmt/prepared/<name>-<hash>; prepare them if it does not exist.

    Besides the binarised data, the folder holds the subword model, and in `texts/` the plain texts for scoring.

    Args:
        config: the data section.
        folder: data folder.
        runs: runs folder.
        distilled: file of the teacher's translations, which replace the training targets. Subwords and dictionary stay
            those of the original texts.

    Raises:
        RelossError: texts are missing or not parallel, or a sentence is too long.
        UsageError: the texts have fewer subwords than requested.
    """
    files, original = text_files(config, folder), None
    inputs = [FORMAT, config.model_dump(exclude={"workers", "teacher"}), fingerprint(config, folder)]
    if distilled is not None:
        original = prepare(config.model_copy(update={"distilled": False}), folder, runs)
        files["train", config.target] = distilled
        inputs.append(hash_of_texts([distilled]))
    target = runs / "nmt" / "prepared" / f"{config.name}-{short_hash(inputs)}"
    if not target.exists():
        say(f"preparing {target}")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _fill(config, files, temporary, original)
            with suppress(OSError):  # another run was faster
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fill(config: Data, files: Mapping[tuple[str, str], Path], target: Path, original: Path | None) -> None:
    """Fill the folder `target`, with subwords and dictionary of the prepared folder `original` if there is one."""
    texts, pieces = target / "texts", target / "pieces"
    for (split, lang), path in files.items():
        lines = (text.lower() if config.lowercase else text for text in read_sentences(path))
        write_text(texts / f"{split}.{lang}", "".join(f"{line}\n" for line in lines))
    if original is None:
        _learn_subwords(config, [texts / f"train.{lang}" for lang in (config.source, config.target)], target)
    else:
        shutil.copy(original / SUBWORDS, target / SUBWORDS)
    _split_into_subwords(files, texts, pieces, target / SUBWORDS)
    dictionary = original / f"dict.{config.source}.txt" if original is not None else None
    run_command("preprocess", arguments.preprocess(config, pieces, target, dictionary), target / "fairseq.log")
    shutil.rmtree(pieces)


def _learn_subwords(config: Data, texts: Sequence[Path], target: Path) -> None:
    """Learn a byte-pair encoding on both languages together.

    The subwords spell a text exactly as it is. sentencepiece's default would replace characters such as ½ and ™, which
    no translation could then contain, although the references do.
    """
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(path) for path in texts],
            model_prefix=str((target / SUBWORDS).with_suffix("")),
            vocab_size=config.subwords,
            model_type="bpe",
            normalization_rule_name="identity",
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UsageError(
            f"sentencepiece cannot learn {config.subwords} subwords of {config.name}: {error}; set data.subwords"
        ) from error


def _split_into_subwords(files: Mapping[tuple[str, str], Path], texts: Path, pieces: Path, model: Path) -> None:
    """Write every text of `texts` into `pieces`, split into subwords; `files` are the sources, for messages."""
    import sentencepiece

    splitter = sentencepiece.SentencePieceProcessor(model_file=str(model))
    counts: dict[str, dict[Path, int]] = {split: {} for split in SPLITS}
    for (split, lang), path in files.items():
        lines = read_lines(texts / f"{split}.{lang}")
        sentences = [spell_symbols(subwords) for subwords in splitter.encode(lines, out_type=str)]
        _check_lengths(sentences, path)
        counts[split][path] = len(sentences)
        write_text(pieces / f"{split}.{lang}", "".join(" ".join(subwords) + "\n" for subwords in sentences))
    for sizes in counts.values():
        check_parallel(sizes)


def spell_symbols(subwords: Sequence[str]) -> list[str]:
    """Return the subwords of a sentence, with each that looks like one of fairseq's symbols split into characters."""
    return [part for subword in subwords for part in (subword if subword in SYMBOLS else (subword,))]


def _check_lengths(sentences: Sequence[Sequence[str]], path: Path) -> None:
    """Raise RelossError if a sentence has too many subwords for the models.

    fairseq would skip it in training, and refuse to translate it at the end.
    """
    long = [number for number, subwords in enumerate(sentences, 1) if len(subwords) > LONGEST]
    if long:
        raise RelossError(
            f"{path}: sentences of more than {LONGEST:,} subwords, which is too long for the models, are on "
            f"{len(long)} lines: {', '.join(map(str, long[:10]))}{', ...' if len(long) > 10 else ''}; remove or split "
            "them, and their translations"
        )
