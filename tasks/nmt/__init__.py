"""Neural machine translation through fairseq."""

from tasks.nmt.task import TranslationTask

TASK = TranslationTask()
