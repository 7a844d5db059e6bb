"""All subcommands of `reloss`, by name, in the order of `reloss --help`."""

from collections.abc import Callable
from typing import Any

from reloss.commands import result_commands, run_commands

COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (
        *(run_commands.List, run_commands.Show, run_commands.Run, run_commands.Learn),
        *(result_commands.Table, result_commands.Compare, result_commands.Report, result_commands.Pack),
        *(result_commands.Diagnose, run_commands.Sweep, run_commands.Status, run_commands.Forget, run_commands.Data),
        *(result_commands.Sync, result_commands.Dashboard, result_commands.Doctor, result_commands.Demo),
    )
}
