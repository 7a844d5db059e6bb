"""The command `reloss`: parses the arguments, calls the subcommand, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from reloss.commands import result_commands, run_commands
from reloss.runtime.errors import RelossError, UsageError, unknown

COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (
        *(run_commands.List, run_commands.Show, run_commands.Run, run_commands.Learn, result_commands.Table),
        *(result_commands.Report, result_commands.Pack, result_commands.Diagnose, run_commands.Sweep),
        *(run_commands.Status, run_commands.Forget, run_commands.Data, result_commands.Sync),
        *(result_commands.Dashboard, result_commands.Doctor, result_commands.Demo),
    )
}
EXIT_CODES = {"failure": 1, "usage": 2, "interrupted": 130, "broken pipe": 141, "terminated": 143}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. EXIT_CODES lists the codes; 0 is success."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        _check_words(words)
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="reloss",
            description="Learn losses that rank predictions as a metric does.",
            args=words,
        )
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(EXIT_CODES["broken pipe"])
    except KeyboardInterrupt:
        print("reloss: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(EXIT_CODES["interrupted"])
    except Exception as error:
        sys.exit(_report(error))
    except BaseException as error:
        if type(error).__name__ != "Terminated":  # of reloss.runtime.signals, which may not be imported yet
            raise
        if os.environ.get("RANK", "0") == "0":
            print("reloss: terminated; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(EXIT_CODES["terminated"])


def _check_words(words: Sequence[str]) -> None:
    """Raise UsageError if a word is not UTF-8, or the first one is no command."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word!r} is not UTF-8; records hold the words of the command as UTF-8") from None
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)


def _report(error: Exception) -> int:
    """Print one line about `error`, and the traceback if RELOSS_DEBUG is set; return the exit code."""
    if os.environ.get("RELOSS_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, RelossError):
        print(f"reloss: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        print(f"reloss: {error.filename}: {error.strerror}; make it usable, or name another path", file=sys.stderr)
        return EXIT_CODES["failure"]
    print(f"reloss: {type(error).__name__}: {error} (RELOSS_DEBUG=1 shows where)", file=sys.stderr)
    return EXIT_CODES["failure"]


if __name__ == "__main__":
    main()
