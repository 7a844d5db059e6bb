import json

import pytest
import torch

from reloss.learning import LearnOptions
from reloss.metrics import accuracy
from reloss.report import figures
from reloss.surrogates import ClassificationReLoss

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look at beside their files."""
    saved = []
    save = figures._save
    monkeypatch.setattr(figures, "_save", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def labels(figure):
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def assert_png(path):
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert len(content) > 5000


def test_training_curves(tmp_path, drawn):
    records = []
    for loss, seed, epochs in (("ce", 0, 3), ("ce", 1, 2), ("reloss", 0, 3)):
        folder = tmp_path / f"{loss}{seed}"
        folder.mkdir()
        entries = [{"epoch": epoch, "accuracy": 0.25 * epoch + 0.1 * seed} for epoch in range(1, epochs + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*entries, {"other": 1}]))
        records.append((loss, folder))
    figures.training_curves(records, "accuracy", tmp_path / "figures" / "curves.png")
    assert_png(tmp_path / "figures" / "curves.png")
    (figure,) = drawn
    assert labels(figure) == [("epoch", "accuracy, %")]
    ordinary, learned = figure.axes[0].lines
    assert ordinary.get_label() == "ce (2 seeds)"
    assert list(ordinary.get_xdata()) == [1, 2]
    assert ordinary.get_ydata() == pytest.approx([30, 55])
    assert learned.get_ydata() == pytest.approx([25, 50, 75])


@pytest.mark.parametrize("input", ["probability", "log_probability"])
def test_loss_curve(tmp_path, drawn, input):
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input=input, output="identity").freeze()
    figures.loss_curve(surrogate, tmp_path / "curve.png")
    assert_png(tmp_path / "curve.png")
    (figure,) = drawn
    assert all(x and y for x, y in labels(figure))
    curve, slope = (axes.lines[0] for axes in figure.axes)
    p = torch.as_tensor(curve.get_xdata())
    ends = torch.log(p[-1]) - torch.log(p)
    torch.testing.assert_close(torch.as_tensor(curve.get_ydata()), ends, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.as_tensor(slope.get_ydata()), p - 1, rtol=1e-4, atol=1e-5)


def test_loss_against_metric(tmp_path, drawn, improving_bank):
    bank = improving_bank(steps=40)
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input="log_probability", output="identity").freeze()
    figures.loss_against_metric(surrogate, bank, accuracy, LearnOptions(), tmp_path / "scatter.png")
    assert_png(tmp_path / "scatter.png")
    (figure,) = drawn
    assert labels(figure) == [("accuracy", "ordinary loss"), ("accuracy", "surrogate")]
    for axes in figure.axes:
        assert len(axes.collections[0].get_offsets()) == 8  # a fifth of the items is held out
        assert axes.get_title().startswith("Spearman of minus the loss: ")
