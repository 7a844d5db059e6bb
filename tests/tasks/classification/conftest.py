from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from keel_tables import write_table
from PIL import Image

from reloss.experiment.settings import override
from reloss.experiment.task import Run, find_experiment
from reloss_tasks.classification.config import ClassificationExperiment
from reloss_tasks.classification.experiments import KEEL_SETS

SPLITS = {"train": 5, "test": 2}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with six classes of random images, for any data set: DATA/{train,test}/<class>/*.png."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for name in "abcdef":
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small table of the name of each KEEL set that has an experiment."""
    folder = tmp_path_factory.mktemp("tables")
    for name in KEEL_SETS.values():
        write_table(folder / "keel" / f"{name}.dat")
    return folder


@pytest.fixture
def digits() -> Callable[..., ClassificationExperiment]:
    """The digits experiment with settings."""
    return lambda *settings: override(find_experiment("classification/digits_cnn")[1], settings)


@pytest.fixture
def a_run(digits: Callable[..., ClassificationExperiment]) -> Callable[..., Run]:
    """A run without a record, for code that does not write."""
    return lambda loss, *settings, **more: Run(digits(*settings), loss, 0, Path(), None, **more)
