"""A few small records, live and packed."""

import json

from small import DIGITS

from reloss.runtime.files import write_json, write_text

SUMMARY = {
    **{"status": "finished", "experiment": DIGITS, "loss": "ce", "settings": ["train.lr=0.1"], "seed": 0},
    **{"protocol": "p", "scores": {"accuracy": 0.5}, "score": "accuracy", "wall_seconds": 3},
}
ENVIRONMENT = {"commit": "abc", "versions": {"python": "3.11"}}
CONFIG = {"name": DIGITS, "learn": {"steps": 5}, "surrogate": {"features": "likelihood"}}
METRICS = [{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": 2}]
CARD = {"metric": "accuracy", "learn": {"objective": "rank", "input": "logit"}, "fit": {"spearman": 0.9, "items": 8}}
NAMES = [f"{DIGITS}/ce/seed{seed}" for seed in range(3)]


def jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def live(runs):
    """Three runs and a surrogate in live folders."""
    for seed, name in enumerate(NAMES):
        write_json(runs / name / "summary.json", {**SUMMARY, "seed": seed})
        write_json(runs / name / "environment.json", {**ENVIRONMENT, "command": f"reloss run --seed {seed}"})
        write_text(runs / name / "config.yaml", json.dumps(CONFIG))
        write_text(runs / name / "metrics.jsonl", jsonl(METRICS))
    home = runs / DIGITS / "surrogates" / "one"
    write_json(home / "surrogate.json", CARD)
    write_text(home / "history.jsonl", jsonl(METRICS))
    write_json(home / "picture.json", {"items": {"metric": [0.5, 1]}})
    write_json(home / "diagnostics.json", {"spearman_checkpoints": 0.1})
    figures = {"metric": "accuracy", "spearman_checkpoints": 0.2}
    entries = [{"loss": "ce", **figures}, {"loss": "reloss", "folder": "surrogates/one", **figures}]
    write_json(runs / DIGITS / "diagnostics" / "diagnostics.json", entries)


def packed(runs):
    """The same in packed files."""
    shared = {"config": "c", "environment": "e", "metrics": METRICS}
    lines = [
        {"name": name, "summary": {**SUMMARY, "seed": seed}, "command": f"reloss run --seed {seed}", **shared}
        for seed, name in enumerate(NAMES)
    ]
    write_text(runs / f"{DIGITS}.jsonl", jsonl(lines))
    write_json(runs / "configs.json", {"c": CONFIG})
    write_json(runs / "environments.json", {"e": ENVIRONMENT})
    figures = {"metric": "accuracy", "spearman_checkpoints": 0.2}
    entries = [{"loss": "ce", **figures}, {"loss": "reloss", "folder": "surrogates/one", **figures}]
    surrogate = {"name": f"{DIGITS}/surrogates/one", "card": CARD, "history": METRICS}
    surrogate |= {"picture": {"items": {"metric": [0.5, 1]}}, "diagnostics": {"spearman_checkpoints": 0.1}}
    lines = [surrogate, {"name": f"{DIGITS}/diagnostics", "diagnostics": entries}]
    write_text(runs / "surrogates.jsonl", jsonl(lines))
