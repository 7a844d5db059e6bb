"""Help texts: every argument has one, their examples are accepted, and shells complete what they list."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from reloss.commands.completion import completion_script
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


OFFERED = {
    "do": "doctor",
    "run --stage ba": "baseline",
    "run classification/digits_": "classification/digits_cnn",
    "run classification/digits_cnn --seed 0 --loss l": "label_smoothing",
    "run --loss label_": "label_smoothing",
    "sweep rare_": "rare_ablation",
    "data fetch cifar10": "cifar10 cifar100",
    "data check cifar10 --da": "--data",
}
"""Lines after `reloss`, and what bash offers for the last word."""


def test_bash_completes_commands_options_experiments_and_losses(tmp_path):
    (tmp_path / "script").write_text(completion_script("bash", COMMANDS))
    calls = [
        f'COMP_WORDS=(reloss {line}); COMP_CWORD={len(line.split())}; _tyro_reloss; echo "${{COMPREPLY[*]}}"'
        for line in OFFERED
    ]
    words = ["bash", "-c", "\n".join(["source ./script", *calls])]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # for its python3
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert dict(zip(OFFERED, done.stdout.splitlines(), strict=True)) == OFFERED


@pytest.mark.parametrize(("shell", "beginning"), [("bash", "# AUTO"), ("zsh", "#compdef reloss\n"), ("fish", "# AUTO")])
def test_the_script_for_each_shell_holds_the_names(cli, shell, beginning):
    code, out, _ = cli("completion", shell)
    assert code == 0
    assert out.startswith(beginning)
    assert "classification/digits_cnn" in out
    if shell == "zsh":  # with `eval`, zsh registers the function and does not call it
        assert out.endswith('  _tyro_reloss "$@"\nelse\n  compdef _tyro_reloss reloss\nfi\n')


def test_the_description_of_the_script_for_fish_is_valid_python():
    script = completion_script("fish", COMMANDS)
    text = re.search(r'set -l pycode "((?:[^"\\]|\\.)*)"', script, re.DOTALL)[1]
    code = re.sub(r"\\(.)", r"\1", text).replace('if __name__ == "__main__":', "if False:")
    values = {}
    exec(code, values)
    offered = values["get_completions"](["reloss", "run", "classification/digits_"], 2, values["COMPLETION_SPEC"])
    assert offered == ["classification/digits_cnn\tclassification/digits_cnn"]


def test_the_script_is_written_without_torch():
    code = "import sys; from reloss.cli import main\ntry: main(['completion', 'bash'])\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
