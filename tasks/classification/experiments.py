"""The experiments of image classification: each function returns one complete config.

The paper's classification scores could not be verified (see published.yaml). So docstrings only state scores that were
measured here or that a named source states.
"""

from collections.abc import Callable
from functools import partial

from reloss.experiment.config import Recording, Scope, SurrogateSection
from reloss.learning.options import LearnOptions
from reloss_tasks.classification.config import ClassificationExperiment, Data, Model, Train

PAPER = "image classification (the paper's models and scores are not available here)"

KEEL_SETS = {
    "abalone17": "abalone-17_vs_7-8-9-10",
    "abalone19": "abalone19",
    "abalone20": "abalone-20_vs_8-9-10",
    "cargood": "car-good",
    "carvgood": "car-vgood",
    "flaref": "flare-F",
    "pageblocks0": "page-blocks0",
    "poker89": "poker-8-9_vs_6",
    "segment0": "segment0",
    "winered4": "winequality-red-4",
    "winewhite39": "winequality-white-3-9_vs_5",
    "yeast1": "yeast1",
    "yeast3": "yeast3",
    "yeast4": "yeast4",
    "yeast5": "yeast5",
    "yeast6": "yeast6",
}
"""Imbalanced KEEL sets of at least 1,000 rows: the name in the experiment, and the name of the file."""


def digits_cnn() -> ClassificationExperiment:
    """The 1,797 digits of scikit-learn (8x8 pixels) with a small CNN: a fast real training, not in the paper.

    Expect about 98 % accuracy in 10 s on 2 cores.

        reloss run classification/digits_cnn --loss reloss --seed 0
    """
    return ClassificationExperiment(
        name="classification/digits_cnn",
        scope=Scope.EXTRA,
        scope_note="a smoke test",
        data=Data(name="digits", format="sklearn", image_size=8, validation_fraction=0.2, workers=0),
        model=Model(name="digits_cnn"),
        train=Train(epochs=20, batch_size=64, lr=0.05, weight_decay=5e-4),
        recording=Recording(item_size=32),
        learn=LearnOptions(items=64, steps=200),
    )


def digits8_cnn() -> ClassificationExperiment:
    """The digit 8 against the other digits, one to fifty, learned from average precision: not in the paper.

    19 of 999 training images are eights, 4 of 250 held-out ones and 7 of 404 test images. Expect 15 s on 2 cores;
    scores are in results/rare.md. --set metric=binary_f1 learns from F1.

        reloss run classification/digits8_cnn --loss reloss --seed 0
    """
    return _rare(
        digits_cnn(),
        "digits8_cnn",
        positive_class=8,
        batch_size=128,
        epochs=100,
        steps=200,
    )


def rare_digit_mlp() -> ClassificationExperiment:
    """The digit 8 against the other digits, one to 21, in noise, learned from F1: not in the paper.

    About 32 of 714 training images are eights, 13 of 304 held-out ones and 30 of 679 test images. The seed decides
    splits and noise. A run takes a few seconds.

        reloss run classification/rare_digit_mlp --loss reloss --seed 0
    """
    data = Data(
        name="noisy_digits",
        format="sklearn",
        image_size=8,
        validation_fraction=0.3,
        positive_class=8,
        negatives_per_positive=21,
        workers=0,
    )
    return _of_f1("rare_digit_mlp", "a rare class", data, "mlp_64", lr=0.3)


def cifar10_cnn() -> ClassificationExperiment:
    """CIFAR-10 with 1,000 images per class and a small CNN, for ablations: not in the paper.

    reloss run classification/cifar10_cnn --loss reloss --seed 0
    """
    return ClassificationExperiment(
        name="classification/cifar10_cnn",
        scope=Scope.EXTRA,
        scope_note="a small network for ablations",
        data=Data(
            name="cifar10", format="torchvision", image_size=32, per_class=1000, validation_fraction=0.1, workers=0
        ),
        model=Model(name="cifar_cnn"),
        train=Train(epochs=10, batch_size=128, lr=0.05, weight_decay=5e-4, warmup_epochs=1),
        learn=LearnOptions(items=64, steps=300),
    )


def cifar10cat_cnn() -> ClassificationExperiment:
    """The cats of CIFAR-10 against the other classes, one to fifty, learned from average precision: not in the paper.

    162 of 8,285 training images are cats, 17 of 894 held-out ones and 180 of 9,180 test images. --set metric=binary_f1
    learns from F1. Scores are in results/rare.md.

        reloss run classification/cifar10cat_cnn --loss reloss --seed 0
    """
    return _rare(
        cifar10_cnn(),
        "cifar10cat_cnn",
        positive_class=3,
        batch_size=256,
        epochs=10,
        steps=300,
    )


def cifar10car_cnn() -> ClassificationExperiment:
    """The cars of CIFAR-10 against the other classes, one to fifty, learned from average precision: not in the paper.

    Cars are easier to recognise than cats. There are as many images, and training is twice as long. --set
    metric=binary_f1 learns from F1. Scores are in results/rare.md.

        reloss run classification/cifar10car_cnn --loss reloss --seed 0
    """
    return _rare(cifar10_cnn(), "cifar10car_cnn", positive_class=1, batch_size=256, epochs=20, steps=300)


def cifar10_resnet20() -> ClassificationExperiment:
    """CIFAR-10 with ResNet-20 and the recipe of He et al. (2016, section 4.2).

    Only a reduced form was measured, see results/; time and score of the full recipe are not measured.

        reloss run classification/cifar10_resnet20 --loss reloss --seed 0
    """
    return _cifar("cifar10", "resnet20")


def cifar10_resnet32() -> ClassificationExperiment:
    """CIFAR-10 with ResNet-32 and the recipe of He et al. (2016, section 4.2). Time and score are not measured.

    reloss run classification/cifar10_resnet32 --loss reloss --seed 0
    """
    return _cifar("cifar10", "resnet32")


def cifar10_resnet56() -> ClassificationExperiment:
    """CIFAR-10 with ResNet-56 and the recipe of He et al. (2016, section 4.2). Time and score are not measured.

    reloss run classification/cifar10_resnet56 --loss reloss --seed 0
    """
    return _cifar("cifar10", "resnet56")


def cifar100_resnet20() -> ClassificationExperiment:
    """CIFAR-100 with ResNet-20 and the recipe of He et al. (2016, section 4.2). Time and score are not measured.

    reloss run classification/cifar100_resnet20 --loss reloss --seed 0
    """
    return _cifar("cifar100", "resnet20")


def cifar100_resnet32() -> ClassificationExperiment:
    """CIFAR-100 with ResNet-32 and the recipe of He et al. (2016, section 4.2). Time and score are not measured.

    reloss run classification/cifar100_resnet32 --loss reloss --seed 0
    """
    return _cifar("cifar100", "resnet32")


def cifar100_resnet56() -> ClassificationExperiment:
    """CIFAR-100 with ResNet-56 and the recipe of He et al. (2016, section 4.2). Time and score are not measured.

    reloss run classification/cifar100_resnet56 --loss reloss --seed 0
    """
    return _cifar("cifar100", "resnet56")


def imagenet_resnet18() -> ClassificationExperiment:
    """ImageNet with ResNet-18 and torchvision's reference recipe.

    torchvision states 69.758 % top-1 accuracy for its weights IMAGENET1K_V1. The time is not measured.

    reloss run classification/imagenet_resnet18 --loss reloss --seed 0 --data DATA
    """
    return _imagenet("resnet18", lr=0.1, weight_decay=1e-4, epochs=90, milestones=(30, 60), gamma=0.1)


def imagenet_resnet50() -> ClassificationExperiment:
    """ImageNet with ResNet-50 and torchvision's reference recipe.

    The release learns its classification surrogate from the logits of this network. torchvision states 76.130 % top-1
    accuracy for its weights IMAGENET1K_V1. The time is not measured.

        reloss run classification/imagenet_resnet50 --loss reloss --seed 0 --data DATA
    """
    return _imagenet("resnet50", lr=0.1, weight_decay=1e-4, epochs=90, milestones=(30, 60), gamma=0.1)


def imagenet_mobilenetv2() -> ClassificationExperiment:
    """ImageNet with MobileNetV2 and torchvision's reference recipe.

    torchvision states 71.878 % top-1 accuracy for its weights IMAGENET1K_V1. The time is not measured.

        reloss run classification/imagenet_mobilenetv2 --loss reloss --seed 0 --data DATA
    """
    return _imagenet(
        "mobilenet_v2", lr=0.045, weight_decay=4e-5, epochs=300, milestones=tuple(range(1, 300)), gamma=0.98
    )


def _cifar(data: str, model: str) -> ClassificationExperiment:
    """Return the recipe of He et al. (2016, section 4.2): 64,000 batches of 128; lr divided by 10 after 1/2 and 3/4."""
    return ClassificationExperiment(
        name=f"classification/{data}_{model}",
        scope=Scope.PAPER,
        scope_note=PAPER,
        data=Data(name=data, format="torchvision", image_size=32),
        model=Model(name=model),
        train=Train(epochs=164, batch_size=128, lr=0.1, weight_decay=1e-4, schedule="step", milestones=(82, 123)),
    )


def _rare(
    base: ClassificationExperiment, name: str, positive_class: int, batch_size: int, epochs: int, steps: int
) -> ClassificationExperiment:
    """Return an experiment on the data of `base`, with one class against the rest, one to fifty.

    Batches, and items of the same size, are large, so that most contain a few positives. A metric of ranks does not
    determine the scale of the logits, and an item without positives gives no signal, so cross-entropy is added to the
    learned loss with weight 1.
    """
    return ClassificationExperiment(
        name=f"classification/{name}",
        scope=Scope.EXTRA,
        scope_note="a metric that does not decompose over examples",
        score="average_precision",
        metric="average_precision",
        losses=("ce", "weighted_ce", "focal", "smooth_ap", "approx", "reloss", "expected"),
        data=base.data.model_copy(update={"positive_class": positive_class, "negatives_per_positive": 50}),
        model=base.model,
        train=base.train.model_copy(update={"batch_size": batch_size, "epochs": epochs, "ordinary_weight": 1.0}),
        recording=Recording(item_size=batch_size),
        learn=LearnOptions(items=64, steps=steps, penalty="one_sided"),
    )


def keel(name: str) -> ClassificationExperiment:
    """One of the imbalanced KEEL sets in `KEEL_SETS`, with a network of 64-64 units, learned from F1: not in the paper.

    The seed decides which of five folds is tested on. A run takes a few seconds; --set metric=mcc learns from MCC.

        reloss run classification/keel_yeast4 --loss reloss --seed 0
    """
    data = Data(name=KEEL_SETS[name], format="tabular", positive_class=1, validation_fraction=0.2, workers=0)
    return _of_f1(f"keel_{name}", "a rare class in real data", data, "mlp_64_64")


def _of_f1(name: str, note: str, data: Data, model: str, lr: float = 0.1) -> ClassificationExperiment:
    """Return an experiment on a rare class, trained for 30 epochs, whose losses compete for F1."""
    return ClassificationExperiment(
        name=f"classification/{name}",
        scope=Scope.EXTRA,
        scope_note=note,
        score="binary_f1",
        metric="binary_f1",
        losses=("ce", "weighted_ce", "soft_f1", "approx", "expected", "reloss"),
        data=data,
        model=Model(name=model),
        train=Train(epochs=30, batch_size=128, lr=lr, weight_decay=1e-4, ordinary_weight=1.0),
        recording=Recording(item_size=128),
        surrogate=SurrogateSection(features="expected"),
        learn=LearnOptions(items=128, steps=200, mixture="thresholds"),
    )


def _imagenet(
    model: str, lr: float, weight_decay: float, epochs: int, milestones: tuple[int, ...], gamma: float
) -> ClassificationExperiment:
    """Return torchvision's reference recipe (references/classification) with batches of 256."""
    return ClassificationExperiment(
        name=f"classification/imagenet_{model.replace('_', '')}",
        scope=Scope.PAPER,
        scope_note=PAPER,
        data=Data(name="imagenet", format="folder", image_size=224, workers=16),
        model=Model(name=model),
        train=Train(
            epochs=epochs,
            batch_size=256,
            lr=lr,
            weight_decay=weight_decay,
            schedule="step",
            milestones=milestones,
            gamma=gamma,
            precision="fp16",
        ),
        recording=Recording(max_bytes=8 << 30),
    )


EXPERIMENTS: dict[str, Callable[[], ClassificationExperiment]] = {
    f"classification/{make.__name__}": make
    for make in (
        digits_cnn,
        digits8_cnn,
        rare_digit_mlp,
        cifar10_cnn,
        cifar10cat_cnn,
        cifar10car_cnn,
        cifar10_resnet20,
        cifar10_resnet32,
        cifar10_resnet56,
        cifar100_resnet20,
        cifar100_resnet32,
        cifar100_resnet56,
        imagenet_resnet18,
        imagenet_resnet50,
        imagenet_mobilenetv2,
    )
} | {f"classification/keel_{name}": partial(keel, name) for name in KEEL_SETS}
