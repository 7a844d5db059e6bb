import json
import math
import subprocess
import sys

import pytest

NAME = "classification/cifar10_resnet20"
TRAINING = (
    "data.format=folder",
    "data.workers=0",
    "train.epochs=2",
    "train.batch_size=32",
    "recording.item_size=32",
)
SETTINGS = (*TRAINING, "learn.steps=10", "learn.items=16")
SETTINGS_OF = {"ce": TRAINING, "reloss": SETTINGS}  # how a surrogate is learned does not concern the baseline


@pytest.mark.slow
def test_real_images(cli, test_data, tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    counts = ("--per-class", "20", "--test-per-class", "20")
    subprocess.run([sys.executable, test_data / "data" / "unpack.py", data, "cifar10", *counts], check=True)
    for loss in ("ce", "reloss"):
        words = ("--loss", loss, "--data", data, "--runs", runs, "--track", "off", "--set", *SETTINGS)
        code, out, _ = cli("run", NAME, *words)
        assert code == 0
        with open(f"{out.strip()}/summary.json") as file:
            summary = json.load(file)
        assert summary["status"] == "finished"
        assert 0 <= summary["scores"]["accuracy"] <= summary["scores"]["top5_accuracy"] <= 1
        assert all(math.isfinite(value) for value in summary["scores"].values())
    rows = json.loads(cli("table", "classification", "--runs", runs, "--format", "json")[1])
    shown = {row["loss"]: row for row in rows if row["experiment"] == NAME}
    for loss in ("ce", "reloss"):
        assert shown[loss]["n"] == 1
        assert shown[loss]["status"] == f"reduced: {' '.join(sorted(SETTINGS_OF[loss]))}"
    assert shown["approx"]["status"] == "not run (no record)"
