"""The teacher of a non-autoregressive model: an autoregressive one, trained before on the same texts.

A non-autoregressive model predicts all words at once, so it learns badly from references where one sentence has many
translations. Knowledge distillation replaces the references by the translations of a teacher, which are more regular. A
student can also start from the teacher's weights. Both need the teacher's record to be finished.
"""

from __future__ import annotations

from pathlib import Path

from reloss.experiment.settings import current_config
from reloss.runtime.errors import UsageError
from reloss.runtime.files import read_json, read_object, write_text
from reloss.runtime.progress import say
from reloss_tasks.nmt import arguments
from reloss_tasks.nmt.config import Data, TranslationExperiment
from reloss_tasks.nmt.data import fingerprint
from reloss_tasks.nmt.fairseq_commands import read_translations, run_command
from reloss_tasks.nmt.preparation import prepare

TRANSLATOR = Path("checkpoint") / "translator.pt"  # in a finished record: the model as fairseq-generate loads it


def prepare_with_teacher(config: Data, folder: Path, runs: Path) -> Path:
    """Return the folder of the prepared data, with the teacher's translations as targets if `config.distilled`.

    Raises:
        RelossError: see `prepare`.
        UsageError: see `teacher_record`.
    """
    return prepare(config, folder, runs, _teacher_translations(config, folder, runs) if config.distilled else None)


def teacher_record(config: Data, folder: Path, runs: Path) -> Path:
    """Return the folder of the teacher's record.

    Raises:
        UsageError: no teacher is named, it is not finished, or it was trained on other texts than those in `folder`.
    """
    without = "or train without a teacher: --set data.distilled=false train.from_teacher=false"
    if not config.teacher:
        raise UsageError(
            f"data.teacher is empty: name the record in {runs} of an autoregressive model of {config.source}-"
            f"{config.target}, such as nmt/multi30k_de_en_at/label_smoothing/seed0; {without}"
        )
    record = runs / config.teacher
    if not (record / TRANSLATOR).exists():
        experiment, _, rest = config.teacher.partition("/label_smoothing")
        raise UsageError(
            f"no finished teacher at {record}: run `reloss run {experiment} --loss label_smoothing "
            f"--seed {rest.rpartition('seed')[2] or 0}`, or name another with data.teacher; {without}"
        )
    trained_on, current = read_json(record / "environment.json").get("data"), fingerprint(config, folder)
    if trained_on != current:
        raise UsageError(
            f"the teacher {record} was trained on other texts than those in {folder / config.name}: their fingerprint "
            f"was {trained_on}, now {current}; train a teacher on these texts and name it with data.teacher; {without}"
        )
    return record


def _teacher_translations(config: Data, folder: Path, runs: Path) -> Path:
    """Return the file of the teacher's translations of the training sentences; translate if it does not exist."""
    record = teacher_record(config, folder, runs)
    path = record / "distilled" / f"train.{config.target}"
    if not path.exists():
        say(f"the teacher {record} translates the training sentences")
        write_text(path, "".join(f"{line}\n" for line in _translate_training_set(record, folder, runs)))
    return path


def _translate_training_set(record: Path, folder: Path, runs: Path) -> list[str]:
    """Return the translations by the model in `record` of the sentences it was trained on, in their order."""
    config = TranslationExperiment.model_validate(current_config(read_object(record / "config.yaml")))
    prepared, results = prepare_with_teacher(config.data, folder, runs), record / "distilled"
    words = arguments.generate(config, prepared, record / TRANSLATOR, "train", results)
    run_command("generate", words, results / "fairseq.log")
    return read_translations(results / "generate-train.txt")
