"""Neural machine translation through fairseq."""

from reloss_tasks.nmt.task import TranslationTask

TASK = TranslationTask()
