"""Render docs/claims.md: every claim of the paper and of this project, with a verdict and its evidence: `make results`.

Claims are written here by hand; numbers and verdicts are not. `reloss.report.verdicts.judge` is the rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reloss.experiment.task import tasks
from reloss.report.published import read_published
from reloss.report.row_status import RowKind
from reloss.report.table import Table
from reloss.report.task_table import task_rows
from reloss.report.verdicts import MARGIN, MIN_SEEDS, Judgement, judge
from tools.evidence import Evidence, Measurement, Variant, cost, cost_of_mistakes, fits, paired, pooled, records, tested
from tools.verdict import unbroken

LEARNED, CE, MSE, NLL = Variant("reloss"), Variant("ce"), Variant("mse"), Variant("nll")
FINE_TUNED = "train.init=baseline"
SHORT = (FINE_TUNED, "train.length=0.5")  # fine-tuning on the rare digit, for half of the baseline's epochs
QUARTER = (FINE_TUNED, "train.length=0.25")  # fine-tuning of translation, for a quarter of the baseline's updates
EIGHT_EPOCHS = (FINE_TUNED, "train.length=0.4")  # fine-tuning of poses, for 8 of 20 epochs
ADDED = "train.ordinary_weight=1.0"
EXPECTED = "surrogate.features=expected"
CIFAR, SMALL = "classification/cifar10_resnet20", "classification/cifar10_cnn"
DIGITS, RARE = "classification/digits_cnn", "classification/rare_digit_mlp"
LSP, LITE0 = "pose/lsp_resnet18", "pose/lsp_lite0"
MULTI30K, SQUAD = "nmt/multi30k_de_en_nat", "mrc/squad_minilm"


@dataclass(frozen=True)
class Claim:
    """A claim and its evidence.

    Attributes:
        text: the claim; a positive difference supports it.
        evidence: what was measured, or can be.
        needs: what a test at the claim's scale needs.
        at_scale: whether the evidence has the scale that the claim speaks of.
    """

    text: str
    evidence: tuple[Evidence, ...] = ()
    needs: str = "runs"
    at_scale: bool = True

    def judged(self) -> tuple[Judgement, list[Measurement]]:
        """Return the verdict and what was measured."""
        measured = [measurement for measurement in (measure() for measure in self.evidence) if measurement]
        return judge([each.side for each in measured], self.at_scale, self.needs), measured


def _ablation(changed: str) -> tuple[Evidence, ...]:
    """Return the evidence that the default fit trains better than one with a changed setting, at an equal rate."""
    variant = Variant("reloss", (changed,))
    return tuple(paired("ablation", name, LEARNED, variant, same_rate=True) for name in (SMALL, DIGITS))


def _paper(text: str, needs: str, *evidence: Evidence) -> Claim:
    return Claim(text, evidence, needs, at_scale=False)


GPU = "a GPU and the paper's data"
PAPER = (
    _paper(
        "Image classification: the learned loss beats cross-entropy.",
        "ImageNet and a GPU",
        *(paired("main", name, LEARNED, CE) for name in (CIFAR, SMALL, DIGITS)),
    ),
    _paper(
        "Pose estimation: the learned loss lifts the AP of HRNet-W32 on COCO val.",
        "COCO and a GPU",
        paired("main", LSP, LEARNED, MSE),
    ),
    _paper("Pose estimation: it lifts the AP of DARK with HRNet-W48 on COCO test-dev.", "the COCO server"),
    _paper(
        "Translation: the learned loss beats the likelihood in non-autoregressive models.",
        "WMT and a GPU",
        paired("main", MULTI30K, LEARNED, NLL),
    ),
    _paper(
        "Reading comprehension: the learned loss beats cross-entropy.",
        "BERT-sized encoders and a GPU",
        paired("main", SQUAD, LEARNED, CE),
    ),
    _paper("A surrogate ranks held-out predictions better than the ordinary loss does.", GPU, fits),
    _paper(
        "A loss fitted to rank (Spearman) trains better than one fitted to the metric's value.",
        GPU,
        *(paired("ablation", name, LEARNED, Variant("approx"), same_rate=True) for name in (SMALL, DIGITS)),
    ),
    _paper(
        "The gradient penalty makes a better loss.",
        GPU,
        *_ablation("learn.penalty=off"),
        paired("main", SQUAD, LEARNED, Variant("reloss", ("learn.penalty=off",)), same_rate=True),
    ),
    _paper(
        "It suffices that a loss ranks as the metric does: without the penalty it ranks better, so it trains better.",
        GPU,
        *(
            paired(group, name, Variant("reloss", ("learn.penalty=off",)), LEARNED, same_rate=True, with_ranking=True)
            for group, name in (("ablation", SMALL), ("main", SQUAD))
        ),
    ),
    _paper(
        "The recipe of the authors' code (`fidelity=released`) trains better than cross-entropy.",
        GPU,
        *(paired("ablation", name, Variant("reloss", ("learn.fidelity=released",)), CE) for name in (SMALL, DIGITS)),
    ),
)
OURS = (
    Claim(
        "`fidelity=released` computes what the authors' modules compute.",
        (tested("numbers recorded from their code", "tests/parity/test_released.py"),),
    ),
    Claim(
        "On real data sets with rare classes, the loss learned for F1, added to cross-entropy, beats cross-entropy.",
        (pooled("ce", "binary_f1"), pooled("ce", "mcc")),
    ),
    Claim("There it beats class weights.", (pooled("weighted_ce", "binary_f1"), pooled("weighted_ce", "mcc"))),
    Claim(
        "There it beats cross-entropy with a tuned threshold.",
        (pooled("ce, threshold tuned", "binary_f1"), pooled("ce, threshold tuned", "mcc")),
    ),
    Claim(
        "There it beats soft F1, which knows the formula.", (pooled("soft_f1", "binary_f1"), pooled("soft_f1", "mcc"))
    ),
    Claim(
        "There it beats the expected F1, used as a loss without learning.",
        (pooled("expected", "binary_f1"), pooled("expected", "mcc")),
    ),
    Claim("On a rare digit it beats cross-entropy.", (paired("rare", RARE, LEARNED, CE, "binary_f1"),)),
    Claim(
        "Features `expected` (what the metric counts) make a better loss than `likelihood` on a rare digit.",
        (paired("rare", RARE, LEARNED, Variant("reloss", ("surrogate.features=likelihood",)), "binary_f1"),),
    ),
    Claim(
        "With features `expected`, fine-tuning a translation model with the learned loss beats the likelihood.",
        (paired("main", MULTI30K, Variant("reloss", (EXPECTED, *QUARTER)), Variant("nll", QUARTER)),),
    ),
    Claim(
        "There it beats the expected BLEU, used as a loss without learning.",
        (paired("main", MULTI30K, Variant("reloss", (EXPECTED, *QUARTER)), Variant("expected", QUARTER)),),
    ),
    Claim(
        "There it beats the bag of 2-grams, a loss by hand.",
        (paired("main", MULTI30K, Variant("reloss", (EXPECTED, *QUARTER)), Variant("bon", QUARTER)),),
    ),
    Claim(
        "With features `expected`, fine-tuning a pose model with the learned loss beats the squared error.",
        (paired("main", LITE0, Variant("reloss", EIGHT_EPOCHS), Variant("mse", EIGHT_EPOCHS)),),
    ),
    Claim(
        "With features `expected`, the learned loss beats cross-entropy in reading.",
        (paired("main", SQUAD, Variant("reloss", (EXPECTED,)), CE),),
        f"runs with {EXPECTED}",
    ),
    Claim(
        "For small networks, Spearman's correlation is a better objective than Kendall's.",
        _ablation("learn.correlation=kendall"),
    ),
    Claim(
        "For small networks, Spearman's correlation is a better objective than Pearson's.",
        _ablation("learn.correlation=pearson"),
    ),
    Claim(
        "Adding the ordinary loss beats the learned loss alone.",
        (
            paired("rare", RARE, LEARNED, Variant("reloss", ("train.ordinary_weight=0.0",)), "binary_f1"),
            paired("main", SMALL, Variant("reloss", (ADDED,)), LEARNED),
        ),
    ),
    Claim(
        "On CIFAR-10 with a small network, the learned loss added to cross-entropy beats cross-entropy.",
        (paired("main", SMALL, Variant("reloss", (ADDED,)), CE),),
    ),
    Claim(
        "Fine-tuning a finished model with the learned loss beats fine-tuning it with the ordinary one.",
        (
            paired("main", LSP, Variant("reloss", (FINE_TUNED,)), Variant("mse", (FINE_TUNED,))),
            paired("main", MULTI30K, Variant("reloss", (FINE_TUNED,)), Variant("nll", (FINE_TUNED,))),
            paired("rare", RARE, Variant("reloss", SHORT), Variant("ce", SHORT), "binary_f1"),
        ),
    ),
    Claim(
        "In translation, fine-tuning with bags of 2-grams, a loss by hand, beats the likelihood.",
        (paired("main", MULTI30K, Variant("bon", (FINE_TUNED,)), Variant("nll", (FINE_TUNED,))),),
    ),
    Claim(
        "A loss learned for a cost of mistakes, a plain function, lowers this cost in three lines of code.",
        (cost_of_mistakes,),
    ),
    Claim(
        "Sorting is cheap: `soft_rank` with `laplace` takes less than 100 times as long for 100 times the values.",
        (
            cost(
                "ranking",
                "{cost:.0f} times as long for 10⁶ values as for 10⁴",
                "forward_backward_ms",
                {"operation": "rank", "library": "reloss laplace", "batch": "1", "n": "1000000"},
                {"operation": "rank", "library": "reloss laplace", "batch": "1", "n": "10000"},
                100,
            ),
        ),
    ),
    Claim(
        "A learned loss takes less than 2 % of a training step of ResNet-20 on 256 images.",
        (
            cost(
                "losses",
                "at most {cost:.1%} over the kinds of predictions",
                "ms",
                {"loss": "learned"},
                {"loss": "ResNet-20 and cross-entropy"},
                0.02,
            ),
        ),
    ),
    Claim(
        "A step of the fit is at least 10 times as fast as a loop over the items.",
        (
            cost(
                "learning",
                "{cost:.1%} of the loop's time",
                "ms",
                {"fidelity": "corrected", "step": "reloss"},
                {"fidelity": "corrected", "step": "loop over the items"},
                0.1,
            ),
        ),
    ),
    Claim(
        "Tracking with Weights & Biases takes at most 1 % of a run.",
        (cost("tracking", "at most {cost:.2f} %", "upper bound %", {"experiment": CIFAR}, None, 1),),
    ),
)

HEADERS = ("claim", "verdict", "evidence", "commands")
PAGE = """# Claims

Every claim of the paper and of this project, with what our measurements make of it. Numbers and verdicts are computed
from committed [records](../results/README.md) by `make results`; none is typed by hand. Other evidence is a benchmark,
or a page or a test that the test suite runs.

{summary}

**The rule** (`judge` in [verdicts.py](../common/reloss/report/verdicts.py)). A measured difference supports a claim if
its 95 % interval, paired by seed or by data set, lies above 0, and opposes it if the interval lies below 0. A claim is
`verified` if all its measurements support it, `contradicted` if all oppose it, and else `undecided`. Measured on less
data or smaller models than the claim speaks of, it is `reduced scale only`, with the direction. A cost supports a claim
if it is within the claim's bound.

## The paper's numbers

The paper's tables of image classification, translation and reading comprehension could not be verified from any source
that was reachable, so no number of theirs is shown. {count} APs of pose estimation could, in the README of the released
code. A published number is `reproduced` if the 95 % interval of at least {min_seeds} seeds at full scale lies wholly
within {margin:g} points of it. Reproduced so far: {reproduced}.

{published}

mmpose's own results for the same network, without any learned loss, are above the published {best:g}.

## Claims of the paper

As far as its abstract and the released code state them.

{paper}

## Claims of this project

{ours}

Commands run both losses again, with data in `data/` (see [usage](usage.md)); they skip finished runs. `reloss compare`
prints a difference again from committed records.
"""


def claims_page() -> str:
    """Return the text of docs/claims.md."""
    judged = {claim: claim.judged() for claim in (*PAPER, *OURS)}
    counts = Counter(judgement.verdict for judgement, _ in judged.values())
    summary = f"{len(judged)} claims: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}."

    def table(claims: Sequence[Claim]) -> str:
        return Table(HEADERS, [_cells(claim, *judged[claim]) for claim in claims]).markdown()

    rows = [row for task in tasks().values() for row in task_rows(task, records("main"))]
    reproduced = [f"{row.experiment} with {row.loss}" for row in rows if row.status.kind is RowKind.REPRODUCED]
    entries = [entry for entry in read_published(tasks()["pose"].folder / "published.yaml") if entry.value is not None]
    theirs = [entry for entry in entries if entry.method is None]
    published: list[list[Any]] = [
        [
            entry.experiment,
            entry.method or {"mse": "ordinary loss"}.get(entry.loss, "ReLoss"),
            entry.value,
            entry.source,
        ]
        for entry in sorted(entries, key=lambda entry: (entry.experiment, entry.value))
    ]
    return PAGE.format(
        summary=summary,
        count=len(theirs),
        min_seeds=MIN_SEEDS,
        margin=MARGIN,
        reproduced=", ".join(reproduced) or "none",
        published=Table(("experiment", "method", "AP", "source"), published, digits=1).markdown(),
        best=next(entry.value for entry in theirs if entry.loss == "reloss"),
        paper=table(PAPER),
        ours=table(OURS),
    )


def _cells(claim: Claim, judgement: Judgement, measured: Sequence[Measurement]) -> list[str]:
    commands = [f"`{text}`" for text in dict.fromkeys(text for each in measured for text in each.commands)]
    shown = f"<details><summary>show</summary>{'<br>'.join(commands)}</details>" if commands else "none"
    return [claim.text, str(judgement), "<br>".join(unbroken(each.text) for each in measured) or "none", shown]
