"""No file from elsewhere can execute code, and no archive can write outside its folder."""

import ast
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from small import SMALL

from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json, write_json
from reloss.surrogates import ClassificationReLoss

ROOT = Path(__file__).parents[1]
FILES = sorted(path for name in ("common", "tasks", "benchmarks", "tools") for path in (ROOT / name).rglob("*.py"))
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "pandas.read_pickle"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system", "shutil.unpack_archive"),
}
# The worker processes of a metric receive its function from their parent, through memory.
ALLOWED = {("common/reloss/metrics/per_item.py", "pickle.loads")}


def calls(path):
    """The calls in a file, as (name with the full module name, call)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    full = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield full.get(first, first) + dot + rest, node


def keyword(call, name):
    return next((ast.unparse(argument.value) for argument in call.keywords if argument.arg == name), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_reader_can_execute_code(path):
    for name, call in calls(path):
        location = f"{path.relative_to(ROOT)}:{call.lineno} {name}"
        if name not in {allowed for file, allowed in ALLOWED if file == str(path.relative_to(ROOT))}:
            assert name not in FORBIDDEN, location
        if name == "torch.load":
            assert keyword(call, "weights_only") == "True", location
        if name == "numpy.load":
            assert keyword(call, "allow_pickle") in (None, "False"), location
        assert keyword(call, "shell") != "True", location
        assert keyword(call, "trust_remote_code") != "True", location
        if name.endswith(".extractall"):
            assert keyword(call, "filter") == "'data'", location


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_unpickling_a_bomb_creates_the_file(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["checkpoint/last.pt", "checkpoint/weights.safetensors"])
def test_a_checkpoint_cannot_execute_code(run_digits, tmp_path, file):
    record = run_digits(seed=1)
    summary = read_json(record / "summary.json")
    (record / "summary.json").unlink()
    torch.save({"model": Bomb(tmp_path / "executed")}, record / file)
    if file.endswith(".pt"):
        with pytest.raises(RelossError, match="is damaged"):
            run_digits(seed=1)
    else:
        write_json(record / "summary.json", {**summary, "status": "interrupted"})
        with pytest.raises(RelossError, match="cannot read the weights"):
            run_digits(seed=1, stage="evaluate")
    assert not (tmp_path / "executed").exists()


def test_a_bank_and_a_fit_cannot_execute_code(run_digits, tmp_path):
    run_digits()
    (shard,) = (tmp_path / "runs").rglob("bank/shards/*.safetensors")
    content = shard.read_bytes()
    torch.save(Bomb(tmp_path / "executed"), shard)
    with pytest.raises(RelossError, match=r"bank shard .* cannot be read"):
        run_digits("reloss")
    shard.write_bytes(content)
    record = run_digits("reloss", settings=SMALL)
    (surrogate,) = (tmp_path / "runs").rglob("surrogate.json")
    surrogate.unlink()
    (record / "summary.json").unlink()
    torch.save(Bomb(tmp_path / "executed"), surrogate.with_name("fit.pt"))
    with pytest.raises(RelossError, match=r"fit\.pt is damaged; remove fit\.pt to learn from scratch"):
        run_digits("reloss", settings=SMALL)
    assert not (tmp_path / "executed").exists()


def test_a_surrogate_cannot_execute_code(tmp_path):
    ClassificationReLoss().save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "weights.ckpt", tmp_path / "folder" / "surrogate.safetensors"):
        torch.save({"network": Bomb(tmp_path / "executed")}, path)
        with pytest.raises((RelossError, SafetensorError)):
            ClassificationReLoss.from_pretrained(path if path.suffix == ".ckpt" else path.parent)
    assert not (tmp_path / "executed").exists()
