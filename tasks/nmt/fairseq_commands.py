"""fairseq's commands, called in this process; what they print goes to a log file."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from reloss.runtime.errors import RelossError

Command = Literal["preprocess", "train", "generate"]


def parse(command: Command, words: Sequence[str]) -> Any:
    """Return the arguments that fairseq's own parser makes of `words`, which must be valid."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if command == "preprocess":
        return options.get_preprocessing_parser().parse_args(list(words))
    parser = options.get_training_parser() if command == "train" else options.get_generation_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=list(words)))


def run_command(command: Command, words: Sequence[str], log: Path) -> list[str]:
    """Run `fairseq-<command> <words>`; returns the lines of its log.

    Raises:
        RelossError: fairseq refuses the arguments or the data; the message is its own.
    """
    with _logged_to(log) as lines:
        from fairseq import checkpoint_utils
        from fairseq_cli import generate, preprocess, train

        arguments = parse(command, words)
        # fairseq keeps the best score so far in the function itself, for all trainings of a process.
        vars(checkpoint_utils.save_checkpoint).pop("best", None)
        main = {"preprocess": preprocess.main, "train": train.main, "generate": generate.main}[command]
        try:
            main(arguments)
        except SystemExit as error:
            raise RelossError(f"fairseq-{command} ended with {error.code}; its log is {log}") from error
    return lines


@contextmanager
def _logged_to(path: Path) -> Iterator[list[str]]:
    """Let all loggers write to the file at `path`, and nothing to standard output; yields the lines as they come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    handlers = [logging.FileHandler(path, encoding="utf-8"), Keeper()]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    root.handlers, root.level = handlers, logging.INFO
    logging.captureWarnings(True)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*pkg_resources is deprecated.*")
            yield lines
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level = before, level
        handlers[0].close()
