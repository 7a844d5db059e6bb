"""The experiments of the toy task: one function each, returning the complete config."""

from reloss.experiment.config import Recording, Scope
from reloss.learning.options import LearnOptions
from reloss_toy.config import Data, Model, ToyExperiment, Train


def clouds_linear() -> ToyExperiment:
    """Three overlapping clouds of points with a linear classifier.

    Expect about 75 % accuracy in 2 s on one core.

        reloss run toy/clouds_linear --loss reloss --seed 0
    """
    return ToyExperiment(
        name="toy/clouds_linear",
        scope=Scope.EXTRA,
        scope_note="an example of a task",
        data=Data(name="clouds", distance=2.0, examples=512),
        model=Model(classes=3),
        train=Train(lr=0.1, epochs=6, batch_size=32),
        recording=Recording(item_size=16),
        learn=LearnOptions(items=16, steps=40),
    )


EXPERIMENTS = {"toy/clouds_linear": clouds_linear}
