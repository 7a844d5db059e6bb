"""Machine reading comprehension through transformers."""

from reloss.experiment.task import Task
from reloss_tasks.mrc.experiments import EXPERIMENTS

TASK = Task(
    name="mrc",
    package=__name__,
    libraries=("accelerate", "transformers", "tokenizers"),
    experiments=EXPERIMENTS,
    install="pip install '.[mrc]'",
)
