import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from test_layering import HEAVY

import reloss

SURROGATES = {"ClassificationReLoss", "PoseReLoss", "ReadingReLoss", "SetReLoss", "SurrogateLoss", "TranslationReLoss"}
LEARNING = {"FitResult", "LearnOptions", "PredictionBank", "fit_surrogate"}


def loaded_modules(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code`."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["reloss", "reloss.learning", "reloss.sweep.slurm"])  # the last in every job
def test_importing_the_package_loads_no_heavy_module(package):
    assert loaded_modules(f"import {package}") & HEAVY == set()


@pytest.mark.parametrize("name", reloss.__all__)
def test_every_public_name_can_be_imported(name):
    (module,) = [module for module, names in reloss._NAMES.items() if name in names]
    assert getattr(reloss, name) is getattr(import_module(module), name)
    assert name in dir(reloss)


def test_users_find_surrogates_and_learning_in_one_place():
    assert set(reloss.__all__) >= SURROGATES | LEARNING


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(reloss.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.name: node.module for node in block.body for alias in node.names}
    assert names == {name: module for module, group in reloss._NAMES.items() for name in group}
    assert sorted(names) == sorted(reloss.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'reloss' has no attribute 'nothing'"):
        reloss.nothing  # noqa: B018
