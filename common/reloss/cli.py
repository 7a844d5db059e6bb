"""The command `reloss`: parses the arguments, calls the subcommand, and turns errors into exit codes.

Almost everything is imported inside `main`, where Ctrl-C is handled: loading the modules takes up to a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

EXIT_CODES = {"failure": 1, "usage": 2, "interrupted": 130, "broken pipe": 141, "terminated": 143}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. EXIT_CODES lists the codes; 0 is success."""
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
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


def _run(words: Sequence[str]) -> None:
    """Parse the words and call the subcommand.

    Raises:
        UsageError: a word is not UTF-8, or the first one is no command.
    """
    import tyro

    import reloss
    from reloss.commands.subcommands import COMMANDS
    from reloss.runtime.errors import UsageError, unknown

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for the names of files in other encodings
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word!r} is not UTF-8; records hold the words of the command as UTF-8") from None
    if list(words) == ["--version"]:
        print(f"reloss {reloss.__version__}")
        return
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="reloss",
        description="Learn losses that rank predictions as a metric does. `reloss --version` prints the version.",
        args=words,
    )()


def _report(error: Exception) -> int:
    """Print one line about `error`, and the traceback if RELOSS_DEBUG is set; return the exit code."""
    from reloss.runtime.errors import RelossError
    from reloss.runtime.extras import unavailable
    from reloss.runtime.text import printable

    if os.environ.get("RELOSS_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = unavailable(error) or error
    text = printable(str(error))
    if isinstance(error, RelossError):
        print(f"reloss: {text}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        where = printable(str(error.filename))
        print(f"reloss: {where}: {error.strerror}; make it usable, or name another path", file=sys.stderr)
        return EXIT_CODES["failure"]
    print(f"reloss: {type(error).__name__}: {text} (RELOSS_DEBUG=1 shows where)", file=sys.stderr)
    return EXIT_CODES["failure"]


if __name__ == "__main__":
    main()
