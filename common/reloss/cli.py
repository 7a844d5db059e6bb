"""The command `reloss`: parses the arguments, calls the subcommand, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import tyro

from reloss.commands import result_commands, run_commands
from reloss.runtime.errors import RelossError

COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (
        *(run_commands.List, run_commands.Show, run_commands.Run, run_commands.Learn, result_commands.Table),
        *(result_commands.Report, result_commands.Pack, result_commands.Diagnose, run_commands.Sweep),
        *(run_commands.Status, run_commands.Data, result_commands.Sync, result_commands.Dashboard),
        *(result_commands.Doctor, result_commands.Demo),
    )
}
EXIT_CODES = {"failure": 1, "usage": 2, "interrupted": 130, "broken pipe": 141, "terminated": 143}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. EXIT_CODES lists the codes; 0 is success."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="reloss",
        description="Learn losses that rank predictions as a metric does.",
        args=arguments,
    )
    try:
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


def _report(error: Exception) -> int:
    """Print one line about `error`, and the traceback if RELOSS_DEBUG is set; return the exit code."""
    if os.environ.get("RELOSS_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, RelossError):
        print(f"reloss: {error}", file=sys.stderr)
        return error.exit_code
    print(f"reloss: {type(error).__name__}: {error} (RELOSS_DEBUG=1 shows where)", file=sys.stderr)
    return EXIT_CODES["failure"]


if __name__ == "__main__":
    main()
