import pytest
from records import HOSTILE, png, record
from records import surrogate as surrogate_folder
from small import DIGITS

from reloss.runtime.files import write_json


@pytest.fixture(scope="session")
def report_runs(tmp_path_factory):
    """Records of three tasks: finished, failed and running ones, a picture, examples, a surrogate, damaged files."""
    runs = tmp_path_factory.mktemp("report") / "runs"
    surrogate = {"folder": "surrogates/0123456789ab", "spearman": 0.9, "spearman_ordinary": 0.8}
    for seed, (ordinary, learned) in enumerate([(0.90, 0.93), (0.92, 0.94), (0.94, 0.95)]):
        record(runs, DIGITS, "ce", seed, ordinary)
        record(runs, DIGITS, "reloss", seed, learned, surrogate=surrogate)
    record(runs, DIGITS, "reloss", 0, 0.5, settings=(f"data.name={HOSTILE}".replace("/", "_"),))
    record(runs, DIGITS, "label_smoothing", 0, 0.5, status="failed", cause=f"no disk {HOSTILE}")
    record(runs, DIGITS, "approx", 0, 0.4, status="running")
    record(runs, "classification/gone_cnn", "ce", 0, 0.5)
    folder = record(runs, "pose/lsp_resnet18", "mse", 0, 0.25, "PCK")
    (folder / "persons.png").write_bytes(png("Persons with their joints"))
    (folder / "broken.png").write_bytes(b"no picture")
    folder = record(runs, "mrc/squad_minilm", "ce", 0, 0.65, "f1")
    row = {"question": HOSTILE, "answer": "Zürich 中文", "gold": ["one", "two"], "context": 60 * "long "}
    write_json(folder / "examples.json", {"wrong": 9 * [row], "right": [row]})
    folder = record(runs, "mrc/squad_minilm", "reloss", 0, 0.64, "f1")
    (folder / "examples.json").write_text("[1, 2")
    (folder / "metrics.jsonl").write_text("{\nnothing\n{}\n")
    damaged = record(runs, "nmt/multi30k_de_en_nat", "nll", 0, 0.2, "sacreBLEU")
    (damaged / "summary.json").write_text("{")
    surrogate_folder(runs / DIGITS / "surrogates" / "0123456789ab")
    return runs


@pytest.fixture
def write_summary(tmp_path):
    """Writes the summary and the environment of one run of the digits experiment below `tmp_path`."""

    def write(loss="ce", seed=0, accuracy=0.5, settings=(), protocol="p", status="finished", **more):
        changed = ",".join(settings).replace("/", "_")
        folder = tmp_path / DIGITS / (f"{loss}@{changed}" if changed else loss) / f"seed{seed}"
        summary = {"status": status, "experiment": DIGITS, "loss": loss, "settings": list(settings), "seed": seed}
        scores = {"accuracy": accuracy} if status == "finished" else {}
        write_json(folder / "summary.json", {**summary, "protocol": protocol, "scores": scores, **more})
        command = f"reloss run {DIGITS} --loss {loss} --seed {seed}"
        write_json(folder / "environment.json", {"commit": f"abc{seed}", "command": command})

    return write
