import json

import pytest
import torch
from records import record
from small import DIGITS

from reloss.experiment.records import read_runs
from reloss.learning import LearnOptions
from reloss.learning.picture import loss_curve
from reloss.metrics import accuracy
from reloss.report import figures
from reloss.surrogates import ClassificationReLoss

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved as files, for a look at their contents."""
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
    for loss, seed, epochs in (("ce", 0, 3), ("ce", 1, 2), ("reloss", 0, 3)):
        folder = record(tmp_path, DIGITS, loss, seed, 0.9)
        entries = [{"epoch": epoch, "accuracy": 0.25 * epoch + 0.1 * seed} for epoch in range(1, epochs + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*entries, {"other": 1}]))
    figures.training_curves(read_runs(tmp_path), "accuracy", tmp_path / "figures" / "curves.png")
    assert_png(tmp_path / "figures" / "curves.png")
    (figure,) = drawn
    assert labels(figure) == [("epoch", "accuracy, %")]
    ordinary, learned = figure.axes[0].lines
    assert ordinary.get_label() == "ce (2 seeds)"
    assert list(ordinary.get_xdata()) == [1, 2]
    assert ordinary.get_ydata() == pytest.approx([30, 55])
    assert learned.get_ydata() == pytest.approx([25, 50, 75])


@pytest.mark.parametrize("input", ["probability", "log_probability"])
def test_loss_curves(tmp_path, drawn, input):
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input=input, output="identity").freeze()
    figures.loss_curves({"learned": surrogate}, tmp_path / "curves.png")
    assert_png(tmp_path / "curves.png")
    (figure,) = drawn
    assert all(x and y for x, y in labels(figure))
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines[:2]] == ["cross-entropy", "learned"]
    (curve, learned), (slope, learned_slope) = (axes.lines[:2] for axes in figure.axes)
    p = torch.as_tensor(curve.get_xdata())
    ends = torch.log(p[-1]) - torch.log(p)
    torch.testing.assert_close(torch.as_tensor(curve.get_ydata()), ends, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.as_tensor(slope.get_ydata()), p - 1, rtol=1e-4, atol=1e-5)
    _, losses, slopes = loss_curve(surrogate, torch.linspace(-9, 9, 400))
    torch.testing.assert_close(torch.as_tensor(learned.get_ydata()), losses - losses[-1])
    torch.testing.assert_close(torch.as_tensor(learned_slope.get_ydata()), slopes)


def test_checkpoints(tmp_path, drawn):
    def run(seed, epochs):
        outputs = torch.randn(epochs, 50, 4, generator=torch.Generator().manual_seed(seed))
        return outputs, (torch.arange(50) % 4).expand(epochs, -1)

    runs = {"ce/seed0": run(0, 5), "ce@train.lr=0.1/seed0": run(1, 6), "reloss/seed0": run(2, 7)}
    losses = {"ordinary": ClassificationReLoss.ordinary_loss, "perfect": lambda *item: -accuracy(*item)}
    figures.checkpoints(losses, accuracy, runs, tmp_path / "checkpoints.png")
    assert_png(tmp_path / "checkpoints.png")
    (figure,) = drawn
    assert labels(figure) == [("accuracy of a checkpoint", "ordinary"), ("accuracy of a checkpoint", "perfect")]
    ce, reloss = figure.axes[1].collections
    assert (ce.get_label(), reloss.get_label()) == ("trained with ce (2 runs)", "trained with reloss (1 runs)")
    assert (len(ce.get_offsets()), len(reloss.get_offsets())) == (11, 7)
    values = accuracy(*runs["reloss/seed0"])
    torch.testing.assert_close(torch.as_tensor(reloss.get_offsets()), torch.stack((values, -values), -1).double())
    assert figure.axes[1].get_title() == "Spearman of minus the loss: 1.000"


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
