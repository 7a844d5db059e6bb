"""Machine reading comprehension through transformers."""

from reloss_tasks.mrc.task import ReadingTask

TASK = ReadingTask()
