"""fairseq's commands, called in this process. Their output goes to a log file."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from reloss.runtime.errors import RelossError
from reloss_tasks.nmt.texts import read_lines

Command = Literal["preprocess", "train", "generate"]


def parse(command: Command, words: Sequence[str]) -> Any:
    """Return the result of fairseq's own parser for `words`, which must be valid arguments."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if command == "preprocess":
        return options.get_preprocessing_parser().parse_args(list(words))
    parser = options.get_training_parser() if command == "train" else options.get_generation_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=list(words)))


def run_command(command: Command, words: Sequence[str], log: Path) -> list[str]:
    """Run `fairseq-<command> <words>` and return the lines of its log.

    Raises:
        RelossError: fairseq refuses the arguments or the data; the message is fairseq's.
    """
    with _logged_to(log) as lines:
        from fairseq import checkpoint_utils
        from fairseq_cli import generate, preprocess, train

        arguments = parse(command, words)
        # fairseq keeps the best score as an attribute of this function, across all trainings of a process.
        vars(checkpoint_utils.save_checkpoint).pop("best", None)
        main = {"preprocess": preprocess.main, "train": train.main, "generate": generate.main}[command]
        try:
            main(arguments)
        except SystemExit as error:
            raise RelossError(
                f"fairseq-{command} ended with {error.code}; the last lines of its log {log} hold the reason"
            ) from error
    return lines


@contextmanager
def _logged_to(path: Path) -> Iterator[list[str]]:
    """Send all loggers to the file at `path` and nothing to standard output. Yields the list of lines, as it grows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root = logging.getLogger()
    previous, level = root.handlers[:], root.level
    handlers = [logging.FileHandler(path, encoding="utf-8"), Collector()]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    root.handlers, root.level = handlers, logging.INFO
    logging.captureWarnings(True)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*pkg_resources is deprecated.*")
            yield lines
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level = previous, level
        handlers[0].close()


def read_translations(path: Path) -> list[str]:
    """Return the translations, in the order of the sentences, from a file that fairseq-generate wrote.

    Raises:
        RelossError: the file lacks sentences, for example because they are too long for the model.
    """
    translations: dict[int, str] = {}
    for line in read_lines(path):
        if line.startswith("D-"):
            name, _, text = line.split("\t", 2)
            translations.setdefault(int(name[2:]), text)
    if sorted(translations) != list(range(len(translations))):
        raise RelossError(
            f"{path} lacks translations of some sentences, which may be too long for the model; shorten or remove them"
        )
    return [translations[number] for number in range(len(translations))]
