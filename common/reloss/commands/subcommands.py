"""All subcommands of `reloss`, by name, in the order of `reloss --help`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from reloss.commands import result_commands, run_commands


@dataclass
class Completion:
    """Print a script with which a shell completes commands, options, experiments and losses when you press Tab.

    In bash, add this line to ~/.bashrc: eval "$(reloss completion bash)". In zsh, put the same line with zsh below
    compinit in ~/.zshrc. In fish: reloss completion fish | source

    Example: reloss completion bash
    """

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="SHELL")]
    """The shell: bash, zsh or fish."""

    def __call__(self) -> None:
        """Print the script."""
        from reloss.commands.completion import completion_script

        print(completion_script(self.shell, COMMANDS))


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (
        *(run_commands.List, result_commands.Zoo, run_commands.Show, run_commands.Run, run_commands.Learn),
        *(result_commands.Table, result_commands.Compare, result_commands.Report, result_commands.Pack),
        *(result_commands.Diagnose, run_commands.Sweep, run_commands.Status, run_commands.Forget, run_commands.Data),
        *(result_commands.Sync, result_commands.Dashboard, result_commands.Doctor, result_commands.Demo),
        Completion,
    )
}
