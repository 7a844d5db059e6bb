"""The experiment that tests run for real, and the settings with which it takes about a second."""

from pathlib import Path

from reloss.experiment.run_spec import RunSpec
from reloss.experiment.workspace import Workspace
from reloss.pipeline.stages import run

DIGITS = "classification/digits_cnn"
SMALL = ("train.epochs=1", "learn.steps=10", "learn.items=16")
SMALL_CE = "ce@train.epochs=1"  # the folder of cross-entropy's runs with these settings


def merged(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """Settings of several groups; where a key occurs twice, the last value counts."""
    values = {setting.partition("=")[0]: setting for group in groups for setting in group}
    return tuple(values.values())


def run_small(
    experiment: str,
    loss: str,
    settings: tuple[str, ...],
    *,
    seed: int = 0,
    data: Path,
    runs: Path,
    track: str = "off",
    **options: object,
) -> Path:
    """Run an experiment without a tracker; return the record."""
    spec = RunSpec.resolve(experiment, loss, seed, settings)
    return run(spec, Workspace(runs, data), track=track, **options)  # type: ignore[arg-type]
