"""Neural machine translation through fairseq."""

from reloss.experiment.task import Task
from reloss_tasks.nmt.experiments import EXPERIMENTS

TASK = Task(
    name="nmt",
    package=__name__,
    libraries=("ve-fairseq", "sentencepiece", "sacrebleu"),
    experiments=EXPERIMENTS,
    install="pip install '.[nmt]'",
)
