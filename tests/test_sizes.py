"""Functions fit on a screen, and files can be read in one go."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
SOURCES = sorted(
    path for folder in ("common/reloss", "tasks", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


def function_lengths(tree: ast.AST) -> dict[str, int]:
    """Lines of every function below a node, by name."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name: node.end_lineno - node.lineno + 1 for node in functions}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = {name: lines for name, lines in function_lengths(ast.parse(text)).items() if lines > MAX_FUNCTION_LINES}
    assert long == {}


def test_a_long_function_is_found():
    body = "\n".join(["def f():", *["    x = 1"] * 60, "def g():", "    pass"])
    assert function_lengths(ast.parse(body)) == {"f": 61, "g": 2}
