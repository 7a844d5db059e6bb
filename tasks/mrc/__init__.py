"""Machine reading comprehension through transformers."""

from tasks.mrc.task import ReadingTask

TASK = ReadingTask()
