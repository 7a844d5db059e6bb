"""Records as runs leave them, written quickly."""

import io
import json
import random

from PIL import Image, PngImagePlugin
from small import DIGITS

from reloss.runtime.files import write_json

BASELINE = {"commit": "abc", "command": f"reloss run {DIGITS}", "versions": {"python": "3.11.7", "torch": "2.14.1"}}
MACHINE = {"devices": {"cpu": "a processor", "threads": 1, "gpus": []}}
HOSTILE = "<script>window.hostile = 1</script><img src=x onerror='window.hostile = 1'>\"'&amp;"


def record(runs, experiment, loss, seed, score, name="accuracy", settings=(), status="finished", **more):
    """Write a record as a run leaves it, with 8 epochs of metrics (3 if it is not finished); return its folder."""
    folder = runs / experiment / (f"{loss}@{','.join(settings)}" if settings else loss) / f"seed{seed}"
    facts = {"experiment": experiment, "loss": loss, "settings": list(settings), "seed": seed, "protocol": "p"}
    facts |= {"score": name, "wall_seconds": 90.0, "data": "d"}
    scores = {name: score} if status == "finished" else {}
    write_json(folder / "summary.json", {"status": status, "scores": scores, **facts, **more})
    write_json(folder / "environment.json", {**BASELINE, **MACHINE})
    epochs = range(1, 9 if status == "finished" else 4)
    lines = [{"step": 10 * each, "epoch": each, f"validation_{name}": score * each / 8} for each in epochs]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def png(text):
    """Return a small PNG image with `text` as its description."""
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", text)
    out = io.BytesIO()
    Image.new("RGB", (60, 40), "teal").save(out, "PNG", pnginfo=about)
    return out.getvalue()


def surrogate(folder):
    """Write a surrogate's card, history and picture, as a fit leaves them."""
    rng = random.Random(0)
    metric = [rng.random() for _ in range(40)]
    items = {
        "metric": metric,
        "ordinary": [1 - each for each in metric],
        "surrogate": [3 - 2 * each for each in metric],
    }
    curve = {"probability": [0.1, 0.5, 1.0], "ordinary": [2.3, 0.7, 0.0], "surrogate": [1.5, 0.6, 0.0]}
    fit = {"spearman": 0.9, "spearman_synthetic": 0.95, "spearman_ordinary": 0.8, "validation_items": 40}
    write_json(folder / "surrogate.json", {"metric": "accuracy", "learn": {"objective": "rank"}, "fit": fit})
    write_json(folder / "picture.json", {"items": items, "curve": curve})
    lines = [{"step": step, "spearman": 0.8 + step / 1000, "spearman_synthetic": 0.9} for step in (20, 40, 60)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
