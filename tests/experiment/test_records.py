import json
from pathlib import Path

import pytest
from small import DIGITS
from small_records import CARD, CONFIG, METRICS, NAMES, SUMMARY, jsonl, live, packed

from reloss.experiment.record_parts import LiveFolder
from reloss.experiment.records import read_records, read_run, read_runs
from reloss.experiment.settings import RENAMED_KEYS, current_config
from reloss.experiment.task import find_experiment
from reloss.runtime.errors import RelossError
from reloss.runtime.files import LARGEST, check_plain, write_json, write_text

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("write", [live, packed])
def test_live_and_packed_records_read_alike(tmp_path, write):
    write(tmp_path)
    found = read_records(tmp_path)
    assert [run.name for run in found.runs] == NAMES
    run = found.runs[1]
    assert (run.seed, run.settings, run.scores, run.wall_seconds) == (1, ("train.lr=0.1",), {"accuracy": 0.5}, 3)
    assert (run.commit, run.command) == ("abc", "reloss run --seed 1")
    assert run.environment["versions"] == {"python": "3.11"}
    assert (run.surrogate, run.fit, run.cause) == ("", {}, "")
    assert (run.config(), run.metrics()) == (CONFIG, METRICS)
    assert run.folder == (tmp_path / NAMES[1] if write is live else None)
    (surrogate,) = found.surrogates_of(DIGITS)
    assert (surrogate.reference, surrogate.metric, surrogate.objective) == ("surrogates/one", "accuracy", "rank")
    assert (surrogate.fit, surrogate.history()) == ({"spearman": 0.9, "items": 8}, METRICS)
    assert surrogate.picture() == {"items": {"metric": [0.5, 1]}}
    ranking = {"spearman_checkpoints": 0.2}  # of the last `reloss diagnose`
    assert found.rankings == {(DIGITS, ""): ranking, (DIGITS, "surrogates/one"): ranking}


def test_a_run_and_its_surrogate(tmp_path):
    used = {"folder": "surrogates/one", "spearman": 0.9, "validation_items": 7}
    write_json(tmp_path / NAMES[0] / "summary.json", {**SUMMARY, "surrogate": used, "diagnostics": {"runs": 2}})
    (run,) = read_runs(tmp_path)
    assert (run.surrogate, run.fit, run.diagnostics) == (
        "surrogates/one",
        {"spearman": 0.9, "validation_items": 7},
        {"runs": 2},
    )
    assert (run.commit, run.command, run.config(), run.metrics()) == ("unknown", "", {}, [])


def test_a_record_cannot_be_changed(tmp_path):
    live(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        read_runs(tmp_path)[0].seed = 1


def test_a_folder_without_a_summary_is_no_record_yet(tmp_path):
    (tmp_path / NAMES[0]).mkdir(parents=True)
    write_text(tmp_path / DIGITS / "ce" / "seeds.txt", "no record")
    assert read_runs(tmp_path) == []
    assert read_run(LiveFolder(NAMES[0], tmp_path / NAMES[0])) is None


WRONG = {
    "null": "null", "list": "[]", "cut": '{"status": "fin', "deep": DEEP, "empty": "",
    "status": json.dumps({**SUMMARY, "status": "great"}),
    "seed": json.dumps({**SUMMARY, "seed": "1"}),
    "long seed": json.dumps({**SUMMARY, "seed": 2**63}),
    "negative seed": json.dumps({**SUMMARY, "seed": -1}),
    "nan": json.dumps({**SUMMARY, "scores": {"accuracy": float("nan")}}),
    "infinite": json.dumps({**SUMMARY, "scores": {"accuracy": float("inf")}}),
    "huge": json.dumps({**SUMMARY, "scores": {"accuracy": 10**400}}),
    "true": json.dumps({**SUMMARY, "scores": {"accuracy": True}}),
    "settings": json.dumps({**SUMMARY, "settings": "train.lr=1"}),
    "setting": json.dumps({**SUMMARY, "settings": [1]}),
    "cause": json.dumps({**SUMMARY, "cause": ["no", "disk"]}),
    "surrogate": json.dumps({**SUMMARY, "surrogate": "one"}),
    "figures": json.dumps({**SUMMARY, "surrogate": {"folder": "one", "spearman": None}}),
    "diagnostics": json.dumps({**SUMMARY, "diagnostics": {"spearman_checkpoints": "0.5"}}),
    "seconds": json.dumps({**SUMMARY, "wall_seconds": -1}),
    "half a character": json.dumps({**SUMMARY, "loss": "\ud800"}),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("write", [live, packed])
def test_a_damaged_summary_is_named_and_skipped(tmp_path, write, text):
    write(tmp_path)
    path = tmp_path / NAMES[1] / "summary.json"
    if write is packed:
        path = tmp_path / f"{DIGITS}.jsonl"
        lines = path.read_text().splitlines()
        lines[1] = lines[1].replace(json.dumps({**SUMMARY, "seed": 1}), text)
        text = "\n".join(lines)
    write_text(path, text)
    damaged = []
    assert [run.seed for run in read_runs(tmp_path, damaged)] == [0, 2]
    (message,) = damaged
    assert str(path) in message
    assert "remove it or restore it from a copy" in message
    assert len(message) < 500
    with pytest.raises(RelossError, match=r"damaged|cannot be read"):
        read_runs(tmp_path)


def test_a_summary_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / NAMES[0] / "summary.json").mkdir(parents=True)
    with pytest.raises(RelossError, match=r"summary\.json cannot be read \(Is a directory\); make it readable"):
        read_runs(tmp_path)


@pytest.mark.parametrize("text", ["null", "[1]", "{", DEEP, '{"versions": "\\ud800"}', '{"commit": 1}'])
def test_a_damaged_environment_is_named_and_its_record_skipped(tmp_path, text):
    live(tmp_path)
    write_text(tmp_path / NAMES[1] / "environment.json", text)
    damaged = []
    assert [run.seed for run in read_runs(tmp_path, damaged)] == [0, 2]
    assert len(damaged) == 1


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12))])


@pytest.mark.parametrize("text", ["[1]", "learn: [", BOMB, "a: &a [*a]", DEEP, "a: 2001-01-01", "1: 2", "a: !!set {b}"])
def test_a_damaged_config_is_named(tmp_path, text):
    live(tmp_path)
    path = tmp_path / NAMES[1] / "config.yaml"
    write_text(path, text)
    with pytest.raises(RelossError, match=r"config\.yaml (is damaged|cannot be read)"):
        read_runs(tmp_path)[1].config()


def test_a_config_may_repeat_a_part_with_an_alias(tmp_path):
    live(tmp_path)
    write_text(tmp_path / NAMES[0] / "config.yaml", "a: &a [1, 2]\nb: *a\n")
    assert read_runs(tmp_path)[0].config() == {"a": [1, 2], "b": [1, 2]}


def test_what_is_too_large_is_damaged():
    check_plain([0] * (LARGEST - 1), "it")
    with pytest.raises(RelossError, match=r"it is damaged \(too large\)"):
        check_plain([0] * LARGEST, "it")


def test_metrics_that_are_not_finite_are_dropped(tmp_path):
    live(tmp_path)
    first = f'{{"step": 1, "loss": NaN, "other": 1e999, "long": 1{400 * "0"}}}'
    write_text(tmp_path / NAMES[0] / "metrics.jsonl", f'{first}\n{{"step": 2, "loss": 3}}\n')
    assert read_runs(tmp_path)[0].metrics() == [{"step": 1}, {"step": 2, "loss": 3}]


@pytest.mark.parametrize("metrics", [{}, 1, "text", [1], [{"step": "1"}], [{"step": None}]])
def test_damaged_metrics_of_a_packed_record_are_named(tmp_path, metrics):
    packed(tmp_path)
    path = tmp_path / f"{DIGITS}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_text(path, jsonl([{**lines[0], "metrics": metrics}]))
    (run,) = read_runs(tmp_path)
    with pytest.raises(RelossError, match=r"digits_cnn\.jsonl, line 1, part metrics is damaged"):
        run.metrics()


@pytest.mark.parametrize(
    "changes", [None, {"fit": {}}, {"fit": {"spearman": "1"}}, {"learn": 1}, {"metric": 1}, {"options": []}]
)
def test_a_damaged_card_is_named_and_skipped(tmp_path, changes):
    live(tmp_path)
    write_json(tmp_path / DIGITS / "surrogates" / "one" / "surrogate.json", {**CARD, **changes} if changes else changes)
    damaged = []
    assert read_records(tmp_path, damaged).surrogates == []
    assert len(damaged) == 1
    with pytest.raises(RelossError, match=r"one/surrogate\.json is damaged"):
        read_records(tmp_path)


@pytest.mark.parametrize("entries", [{}, [1], None, [{"spearman_checkpoints": "1"}], [{"runs": float("nan")}]])
def test_a_damaged_diagnosis_is_named_and_skipped(tmp_path, entries):
    live(tmp_path)
    write_text(tmp_path / DIGITS / "diagnostics" / "diagnostics.json", json.dumps(entries))
    damaged = []
    assert read_records(tmp_path, damaged).rankings == {(DIGITS, "surrogates/one"): {"spearman_checkpoints": 0.1}}
    assert len(damaged) == 1


@pytest.mark.parametrize(
    ("file", "text", "seeds"),
    [
        ("configs.json", "{", []),
        ("environments.json", DEEP, []),
        ("environments.json", "{}", []),
        ("configs.json", '{"c": 1}', []),
        (f"{DIGITS}.jsonl", "\xff\n", []),
    ],
)
def test_damaged_packed_files_are_named(tmp_path, file, text, seeds):
    packed(tmp_path)
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    damaged = []
    assert [run.seed for run in read_runs(tmp_path, damaged)] == seeds
    assert damaged


@pytest.mark.parametrize("line", ["{}", '{"name": 1}', '{"name": "no/name"}', '{"name": "a/b/c"}', DEEP])
def test_a_packed_line_without_a_record_is_named(tmp_path, line):
    packed(tmp_path)
    path = tmp_path / f"{DIGITS}.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    damaged = []
    assert len(read_runs(tmp_path, damaged)) == 3
    (message,) = damaged
    assert f"{path}, line 1" in message


def test_a_packed_line_may_hold_any_line_separator(tmp_path):
    packed(tmp_path)
    path = tmp_path / f"{DIGITS}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["summary"]["cause"] = cause = "a\u2028b\x85c"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert [run.cause for run in read_runs(tmp_path)] == [cause, "", ""]


def test_a_record_that_is_there_twice_counts_once(tmp_path):
    live(tmp_path)
    packed(tmp_path)
    damaged = []
    assert [run.name for run in read_runs(tmp_path, damaged)] == NAMES
    assert [message.partition(" ")[0] for message in damaged] == NAMES


def test_old_keys_are_read_under_their_new_names(tmp_path, monkeypatch):
    monkeypatch.setitem(RENAMED_KEYS, "train.lr", "optimiser.rate")
    live(tmp_path)
    write_text(
        tmp_path / NAMES[0] / "config.yaml",
        json.dumps({"name": DIGITS, "learn": {"input": "probability"}, "structure": "span", "surrogate": None}),
    )
    found = read_records(tmp_path)
    run, (surrogate,) = found.runs[0], found.surrogates
    assert run.settings == ("optimiser.rate=0.1",)
    changed = {"input": "probability", "structure": "span", "features": "likelihood"}
    assert run.config() == {"name": DIGITS, "learn": {}, "surrogate": changed}
    assert surrogate.config() == {
        "learn": {"objective": "rank"},
        "surrogate": {"input": "logit", "features": "likelihood"},
    }


def test_features_and_penalty_of_a_config_without_features():
    def read(**learn):
        return current_config({"learn": learn})

    assert read(penalty="example")["learn"] == {"penalty": "auto"}
    assert read(fidelity="released")["surrogate"] == {"features": "released"}
    today = {"learn": {"penalty": "example"}, "surrogate": {"features": "expected"}}
    assert current_config(today) == today


def test_every_committed_record_is_whole():
    root = Path(__file__).parents[2] / "results" / "records"
    groups = {path.name: read_records(path) for path in sorted(root.iterdir()) if path.name != "field"}  # no runs there
    numbers = {name: len(group.runs) for name, group in groups.items()}
    assert numbers == {"ablation": 246, "keel": 1260, "main": 118, "rare": 540, "tiny": 2}
    for records_of_folder in groups.values():
        for run in records_of_folder.runs:
            assert run.config()["name"] == run.experiment
            assert all("step" in line for line in run.metrics())
        for surrogate in records_of_folder.surrogates:
            surrogate.history(), surrogate.picture()


@pytest.mark.parametrize(
    ("paper", "scope", "note"),
    [
        ("reduced: 800 persons of LSP", "reduced", "800 persons of LSP"),
        ("none: a smoke test", "extra", "a smoke test"),
        ("COCO val, HRNet-W32 256x192", "paper", "COCO val, HRNet-W32 256x192"),
    ],
)
def test_the_paper_of_an_old_config_becomes_scope_and_note(paper, scope, note):
    assert current_config({"name": DIGITS, "paper": paper}) == {"name": DIGITS, "scope": scope, "scope_note": note}


def test_every_committed_config_is_valid_under_the_keys_of_today():
    root = Path(__file__).parents[2] / "results" / "records"
    configs = {(run.experiment, json.dumps(run.config())) for folder in root.iterdir() for run in read_runs(folder)}
    assert len(configs) > 50
    for experiment, config in configs:
        kind = type(find_experiment(experiment)[1])
        values = json.loads(config)
        unknown = values.keys() - kind.model_fields.keys()
        assert unknown == set(), experiment
