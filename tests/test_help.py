"""Help texts: every argument has one, their examples are accepted, and shells complete what they list."""

import re
import shlex
import subprocess

import pytest
import tyro

from reloss.commands.subcommands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_a_help_text(name):
    with pytest.deprecated_call():
        parser = tyro.extras.get_parser(COMMANDS[name])
    for action in parser._actions:
        text = re.sub(r"\((required|repeatable|optional|default: .*)\)", "", action.help or "").strip()
        assert len(text) > 8, f"{name} {action.option_strings or action.dest}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_the_help_of_a_command_is_accepted(cli, name):
    code, out, _ = cli(name, "--help")
    text = " ".join(out.split())
    (example,) = re.findall(r"Example: (?:[A-Z_]+=\S+ )?reloss (.*?)(?: ╭| positional| options|$)", text)
    assert code == 0
    words = shlex.split(example)
    assert words[0] == name
    tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="reloss", args=words)  # parsed, not run


def completions(script, *words):
    """What bash offers for the last word, after sourcing the script."""
    line = " ".join(words)
    call = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tyro_reloss; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"source {script}; {call}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_shell_completes_commands_options_and_values(cli, tmp_path):
    code, out, _ = cli("completion", "bash")
    assert code == 0
    (tmp_path / "script").write_text(out)
    assert completions(tmp_path / "script", "reloss", "do") == {"doctor"}
    assert completions(tmp_path / "script", "reloss", "run", "--see") == {"--seed"}
    assert completions(tmp_path / "script", "reloss", "run", "--stage", "ba") == {"baseline"}
    for shell, beginning in (("zsh", "#compdef reloss"), ("fish", "# AUTOMATICALLY GENERATED")):
        assert cli("completion", shell)[1].startswith(beginning)
