"""Image classification through torchvision and accelerate."""

from tasks.classification.task import ClassificationTask

TASK = ClassificationTask()
