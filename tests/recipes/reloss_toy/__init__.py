"""The smallest complete task: two clouds of points and a linear classifier, in plain PyTorch.

Copy this folder to begin a task of your own; CONTRIBUTING.md says what each file holds.
"""

from reloss.experiment.task import Task
from reloss_toy.experiments import EXPERIMENTS

TASK = Task(name="toy", package=__name__, libraries=("torch",), experiments=EXPERIMENTS)
