"""Image classification through torchvision and accelerate."""

from reloss.experiment.task import Task
from reloss_tasks.classification.ablation import ABLATION, RARE_ABLATION
from reloss_tasks.classification.experiments import EXPERIMENTS

TASK = Task(
    name="classification",
    package=__name__,
    libraries=("torchvision", "accelerate"),
    experiments=EXPERIMENTS,
    install="pip install '.[classification]'",
    ablations=(ABLATION, RARE_ABLATION),
)
