"""Image classification through torchvision and accelerate."""

from reloss_tasks.classification.task import ClassificationTask

TASK = ClassificationTask()
