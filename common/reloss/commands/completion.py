"""`reloss completion`: the script with which a shell completes commands, options, experiments and losses.

tyro writes the script. It holds a description of the command line as a Python literal, COMPLETION_SPEC, and runs Python
at every press of Tab, with nothing but the standard library. tyro describes commands and options. This module adds the
names of tasks and experiments to the commands that take one, as if they were subcommands, and the losses of each
experiment as the choices of `--loss`.
"""

from __future__ import annotations

import inspect
import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any

SPEC = re.compile(r"^COMPLETION_SPEC = .*$", re.MULTILINE)
# A function that calls `_describe` outside of a completion fails, so tyro's script does not work with `eval`.
ZSH_CALL = 'typeset -A opt_args\n_tyro_reloss "$@"'
ZSH_CALL_OR_REGISTER = (
    'if [ "$funcstack[1]" = _tyro_reloss ]; then\n  _tyro_reloss "$@"\nelse\n  compdef _tyro_reloss reloss\nfi'
)


def completion_script(shell: str, commands: dict[str, Any]) -> str:
    """Return the script for `shell`: bash, zsh or fish."""
    from tyro.extras import subcommand_cli_from_dict

    script = StringIO()
    with redirect_stdout(script), suppress(SystemExit):
        subcommand_cli_from_dict(commands, prog="reloss", args=["--tyro-write-completion", shell, "-"])
    names, losses = known_names()
    lines = f"{inspect.getsource(add_names)}\nadd_names(COMPLETION_SPEC, {names!r}, {losses!r})"
    if shell == "fish":  # the description is in double quotes there
        lines = re.sub(r'([\\"$])', r"\\\1", lines)
    text = SPEC.sub(lambda match: f"{match[0]}\n{lines}", script.getvalue())
    return text.replace(ZSH_CALL, ZSH_CALL_OR_REGISTER).rstrip("\n")


def known_names() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names that each command takes first, by the words of the command, and the losses by experiment."""
    from reloss.experiment.task import ablations, tasks

    configs = [make() for task in tasks().values() for make in task.experiments.values()]
    experiments, groups = [config.name for config in configs], list(tasks())
    data = [*dict.fromkeys(config.data.name for config in configs), *experiments]
    swept = [*(ablation.name for ablation in ablations()), *groups, *experiments]
    names = dict.fromkeys(("show", "run", "diagnose"), experiments)
    names |= dict.fromkeys(("sweep", "status", "forget"), swept)
    names |= {f"data {action}": data for action in ("check", "fetch")}
    names |= {"table": ["ablation", "correlation", *groups, *experiments], "dashboard": [*groups, *experiments]}
    names["completion"] = ["bash", "zsh", "fish"]
    return names, {config.name: list(config.losses) for config in configs}


def add_names(spec: dict, names: dict, losses: dict) -> None:
    """Add the names that commands take to tyro's description, and to each experiment its losses."""

    def with_losses(option: dict, choices: list) -> dict:
        if choices and {"--loss", "--losses"} & set(option["flags"]):
            return {**option, "type": "choice", "choices": choices}
        return option

    every_loss = sorted({loss for known in losses.values() for loss in known})
    for command, known in names.items():
        inner = spec
        for word in command.split():
            inner = inner["subcommands"].setdefault(word, {**inner, "description": word, "subcommands": {}})
        for name in known:
            options = [with_losses(option, losses.get(name, [])) for option in inner["options"]]
            inner["subcommands"][name] = {"description": name, "options": options, "subcommands": {}}
        inner["options"] = [with_losses(option, every_loss) for option in inner["options"]]
