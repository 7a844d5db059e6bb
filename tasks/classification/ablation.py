"""The ablations of classification: each variant changes one factor of a centre. Imports no torch.

The centre is loss `reloss` with the experiment's own settings and fidelity=corrected. `ABLATION` is about the fit, on
balanced classes. `RARE_ABLATION` is about what decides in training, on rare classes: the features, learning, the
start, the share of the ordinary loss, and a second fit.
"""

from reloss.sweep.ablation import Ablation, Variant

CENTRE = Variant("centre", "fidelity=corrected", "reloss")

FACTORS = {
    "correlation": {
        "odd-even Spearman": "learn.method=odd_even",
        "laplace Spearman": "learn.method=laplace",
        "pairwise Spearman": "learn.method=pairwise",
        "Kendall": "learn.correlation=kendall",
        "Pearson": "learn.correlation=pearson",
    },
    "penalty": {
        "released (item)": "learn.penalty=item",
        "one-sided": "learn.penalty=one_sided",
        "off": "learn.penalty=off",
        "example, weight 0.1": "learn.penalty_weight=0.1",
        "example, weight 1": "learn.penalty_weight=1",
    },
    "input": {"p": "surrogate.input=probability"},
    "output": {"absolute": "surrogate.output=absolute", "identity": "surrogate.output=identity"},
    "calibration": {"off": "learn.calibrate=false"},
    "mixing": {
        "+ 0.5 cross-entropy": "train.ordinary_weight=0.5",
        "+ 1 cross-entropy": "train.ordinary_weight=1",
    },
    "fidelity": {
        "released": "learn.fidelity=released",
        "released, calibrated": "learn.fidelity=released learn.calibrate=true",
    },
    "data source": {
        "recorded": "learn.mixture=recorded",
        "relabelled (released)": "learn.mixture=relabelled",
        "perturbed": "learn.mixture=perturbed",
        "random": "learn.mixture=random",
        "all": "learn.mixture=all",
    },
}

# Relative to the learning rate of both experiments, 0.05.
RATES = {"half": 0.025, "double": 0.1, "fourfold": 0.2, "eightfold": 0.4, "sixteenfold": 0.8}
TUNED = {"ce": ("ce", ()), "reloss": ("reloss", ()), "reloss + 1 ce": ("reloss", ("train.ordinary_weight=1",))}

ABLATION = Ablation(
    experiments={"classification/digits_cnn": 0.3, "classification/cifar10_cnn": 1.0},
    variants=(
        Variant("baseline", "cross-entropy", "ce"),
        CENTRE,
        Variant("objective", "value (approx)", "approx"),
        *(
            Variant(factor, value, "reloss", tuple(settings.split()))
            for factor, values in FACTORS.items()
            for value, settings in values.items()
        ),
        *(
            Variant("learning rate", f"{name}, {size}", loss, (f"train.lr={rate}", *settings))
            for name, (loss, settings) in TUNED.items()
            for size, rate in RATES.items()
        ),
    ),
)

# The KEEL sets whose results are committed.
RARE_SETS = (
    *("abalone17", "abalone20", "cargood", "carvgood", "flaref", "segment0", "winered4"),
    *("yeast1", "yeast3", "yeast4", "yeast5", "yeast6"),
)
FINE_TUNED = ("train.init=baseline", "train.length=0.5")
ALONE, LEARNED = "train.ordinary_weight=0", "train.ordinary_weight=learned"

RARE_ABLATION = Ablation(
    name="rare_ablation",
    experiments={"classification/rare_digit_mlp": 0.05, **{f"classification/keel_{name}": 0.05 for name in RARE_SETS}},
    variants=(
        Variant("baseline", "cross-entropy", "ce"),
        Variant("baseline", "cross-entropy, fine-tuned", "ce", FINE_TUNED),
        CENTRE,
        Variant("features", "likelihood", "reloss", ("surrogate.features=likelihood",)),
        Variant("learning", "none (expected)", "expected"),
        Variant("learning", "none, alone", "expected", (ALONE,)),
        Variant("learning", "none, learned weights", "expected", (LEARNED,)),
        Variant("start", "fine-tuned", "reloss", FINE_TUNED),
        Variant("start", "fine-tuned, alone", "reloss", (*FINE_TUNED, ALONE)),
        Variant("start", "fine-tuned, not learned", "expected", FINE_TUNED),
        Variant("mixing", "alone", "reloss", (ALONE,)),
        Variant("mixing", "learned weights", "reloss", (LEARNED,)),
        Variant("second fit", "yes", "reloss", ("refit=true",)),
        Variant("second fit", "fine-tuned", "reloss", ("refit=true", *FINE_TUNED)),
    ),
)
