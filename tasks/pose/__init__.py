"""Human pose estimation through mmpose."""

from reloss.experiment.task import Task
from reloss_tasks.pose.experiments import EXPERIMENTS

TASK = Task(
    name="pose",
    package=__name__,
    libraries=("mmpose", "mmengine", "mmcv-lite", "xtcocotools"),
    experiments=EXPERIMENTS,
    install="pip install '.[pose]' && pip install --no-deps mmpose==1.1.0",
)
