"""Reading records: one validated object per run and per surrogate, from live folders and packed files alike.

Everything is validated once, when it is read. A damaged record is named and skipped, whatever is wrong with it, so that
one bad file does not hide the results of a hundred runs. See `reloss.experiment.record_parts` for the two forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from reloss.experiment.record_parts import (
    LiveFolder,
    PackedLine,
    Source,
    damage,
    live_folders,
    name_order,
    packed_runs,
    packed_surrogates,
    skipping,
)
from reloss.experiment.run_spec import MAX_SEED
from reloss.experiment.settings import current_config, renamed
from reloss.experiment.status import RECORDED, Status
from reloss.runtime.files import check_hash
from reloss.surrogates.options import FEATURES

DIAGNOSTICS = "/diagnostics"  # ends the name of the folder in which `reloss diagnose` leaves its results
T = TypeVar("T")


def _is_finite(value: float) -> bool:
    """Return whether a number, or an integer of any length, can be computed with."""
    return abs(value) <= 1e100


def _check_finite(value: float) -> float:
    if not _is_finite(value):
        raise ValueError("not a finite number")
    return value


Number = Annotated[int | float, AfterValidator(_check_finite)]


def _recorded(status: Status) -> Status:
    if status not in RECORDED:
        raise ValueError("not a state of a record")
    return status


Figures = dict[str, Number]
"""Finite numbers by name."""


class Recorded(BaseModel):
    """What the records of runs and of surrogates have in common."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    name: Annotated[str, Field(pattern=r"^[^/]+/[^/]+/.+")]
    """Folder relative to the folder of all records, such as classification/digits_cnn/ce/seed0."""
    source: LiveFolder | PackedLine = Field(repr=False)
    """Where parts that are rarely needed are read from."""

    @property
    def folder(self) -> Path | None:
        """The live folder; None for a packed record."""
        return self.source.folder

    def _lines(self, part: str) -> list[dict[str, float]]:
        """Return a part that is a list of named numbers; a value that is not finite is dropped."""
        lines = _part(self.source, part, LINES) or []
        return [{name: value for name, value in line.items() if _is_finite(value)} for line in lines]


class RunRecord(Recorded):
    """What one run left behind. Scores are as the task computed them, mostly in [0, 1]."""

    experiment: str
    loss: str
    settings: Annotated[tuple[str, ...], Strict(False)]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    protocol: str
    """Hash of what two runs must share to be compared."""
    status: Annotated[Status, Strict(False), AfterValidator(_recorded)]
    scores: Figures
    score: str = ""
    """Name of the score in the experiment's table."""
    cause: str = ""
    """Why the run failed."""
    data: str | None = None
    """Fingerprint of the data."""
    wall_seconds: Annotated[Number, Field(ge=0)] | None = None
    surrogate: str = ""
    """Surrogate the run trained with: its folder within the experiment's, such as surrogates/0123456789ab, or empty."""
    fit: Figures = {}
    """Figures of that surrogate's fit, such as `spearman` on held-out recorded items, and `seconds`."""
    diagnostics: Figures = {}
    """How well the run's loss ranked the checkpoints that were recorded until then."""
    environment: dict[str, Any] = {}
    """What `reloss.experiment.environment.describe` returned: commit, command, versions, devices."""
    commit: str = "unknown"
    command: str = ""

    def config(self) -> dict[str, Any]:
        """Return the resolved config of the run under today's keys, empty if it was not kept.

        Raises:
            RelossError: it is damaged.
        """
        return current_config(_part(self.source, "config", OBJECT) or {})

    def metrics(self) -> list[dict[str, float]]:
        """Return the metrics logged during training, one dictionary per line; values that are not finite are dropped.

        Raises:
            RelossError: they are damaged.
        """
        return self._lines("metrics")


class SurrogateRecord(Recorded):
    """What the fit of one surrogate left behind."""

    metric: str
    learn: dict[str, Any]
    """Options of the fit, under the keys of its time; see `config`."""
    features: str = ""
    """What it sees of a prediction; empty in records of earlier versions."""
    options: dict[str, Any] = {}
    """Options of the network."""
    fit: Figures
    """Figures of the fit: `spearman` on held-out recorded items and others."""

    @property
    def experiment(self) -> str:
        """The experiment whose predictions it was fitted on."""
        return experiment_of(self.name)

    @property
    def reference(self) -> str:
        """Its folder within the experiment's, as `RunRecord.surrogate` gives it."""
        return self.name.removeprefix(f"{self.experiment}/")

    @property
    def objective(self) -> str:
        """What it was fitted for: to `rank` items as the metric does, or to predict the metric's `value`."""
        return str(self.learn.get("objective", ""))

    def config(self) -> dict[str, Any]:
        """Return the sections of a config that hold the options of the fit under today's keys."""
        if not self.features:
            return current_config({"learn": self.learn})
        of_fidelity = FEATURES.get(self.learn.get("fidelity", ""), self.features)
        features = self.features if self.features == "expected" else of_fidelity
        return current_config({"learn": self.learn, "surrogate": {"features": features}})

    def history(self) -> list[dict[str, float]]:
        """Return the figures logged during the fit, one dictionary per line; values that are not finite are dropped.

        Raises:
            RelossError: they are damaged.
        """
        return self._lines("history")

    def picture(self) -> dict[str, dict[str, list[float]]] | None:
        """Return what `reloss.learning.diagnostics.picture` measured of it, or None if that was not kept.

        Raises:
            RelossError: it is damaged.
        """
        return _part(self.source, "picture", PICTURE)


def _strict(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True))


RUN, SURROGATE = TypeAdapter(RunRecord), TypeAdapter(SurrogateRecord)
OBJECT: TypeAdapter[dict[str, Any]] = _strict(dict[str, Any])
OBJECTS: TypeAdapter[list[dict[str, Any]]] = _strict(list[dict[str, Any]])
FIGURES: TypeAdapter[Figures] = _strict(Figures)
LINES: TypeAdapter[list[dict[str, float]]] = _strict(list[dict[str, int | float]])
PICTURE: TypeAdapter[dict[str, dict[str, list[float]]]] = _strict(dict[str, dict[str, list[Number]]])


@dataclass(frozen=True)
class Records:
    """All records below one folder.

    Attributes:
        folder: live folder of runs, or packed folder.
        runs: ordered by name.
        surrogates: ordered by name.
        rankings: how well each loss ranks the checkpoints of all runs, measured by `reloss diagnose`: figures by
            experiment and `SurrogateRecord.reference`, which is empty for the ordinary loss.
    """

    folder: Path
    runs: list[RunRecord]
    surrogates: list[SurrogateRecord]
    rankings: dict[tuple[str, str], Figures]

    def surrogates_of(self, experiment: str) -> list[SurrogateRecord]:
        """Return the surrogates of one experiment."""
        return [surrogate for surrogate in self.surrogates if surrogate.experiment == experiment]


def read_records(folder: Path, damaged: list[str] | None = None) -> Records:
    """Return all records below `folder`, which may hold live folders of runs and packed files.

    Args:
        folder: RUNS or PACKED of `reloss.experiment.record_parts`.
        damaged: receives one message for each damaged record, which is then skipped.

    Raises:
        RelossError: a record is damaged, and `damaged` is None.
    """
    sources = surrogate_sources(folder, damaged)
    rankings: dict[tuple[str, str], Figures] = {}
    for source in sources:
        with skipping(damaged):
            rankings |= checkpoint_rankings(source)
    surrogates = _read_all(read_surrogate, sources, damaged)
    return Records(folder, read_runs(folder, damaged), surrogates, rankings)


def read_runs(folder: Path, damaged: list[str] | None = None) -> list[RunRecord]:
    """Return the records of all runs below `folder`, live and packed, ordered by name; see `read_records`."""
    return _read_all(read_run, [*live_folders(folder, "*/*/*/seed*"), *packed_runs(folder, damaged)], damaged)


def surrogate_sources(folder: Path, damaged: list[str] | None = None) -> list[Source]:
    """Return all surrogates below `folder`, then all diagnostics folders, live and packed; see `read_records`."""
    sources: list[Source] = list(packed_surrogates(folder, damaged))
    sources += live_folders(folder, "*/*/surrogates/*") + live_folders(folder, "*/*/diagnostics")
    return sorted(sources, key=lambda source: (source.name.endswith(DIAGNOSTICS), name_order(source.name)))


def _read_all(read: Callable[[Source], T | None], sources: Iterable[Source], damaged: list[str] | None) -> list[T]:
    """Return what `read` makes of the sources, ordered by name; of two sources with one name, the second is damaged."""
    records: dict[str, T] = {}
    for source in sorted(sources, key=lambda source: name_order(source.name)):
        with skipping(damaged):
            record = read(source)
            if record is not None and source.name in records:
                raise damage(f"{source.name}", "recorded twice")
            if record is not None:
                records[source.name] = record
    return list(records.values())


def read_run(source: Source) -> RunRecord | None:
    """Return the record of one run, or None if it has no summary.

    Raises:
        RelossError: its summary or its environment is damaged.
    """
    summary, environment = _part(source, "summary", OBJECT), _part(source, "environment", OBJECT) or {}
    if summary is None:
        if source.folder is None:
            raise damage(source.where("summary"), "missing")
        return None
    check_hash(summary, "scores", source.where("summary"))
    surrogate = _validated(OBJECT, summary.get("surrogate", {}), source.where("summary"))
    values = {name: value for name, value in summary.items() if name in RunRecord.model_fields}
    values |= {"surrogate": surrogate.get("folder", ""), "environment": environment, "name": source.name}
    values |= {"fit": {name: value for name, value in surrogate.items() if name != "folder"}, "source": source}
    values |= {name: environment[name] for name in ("commit", "command") if name in environment}
    values["data"] = summary.get("data")
    record = _validated(RUN, values, source.where("summary"))
    return record.model_copy(update={"settings": tuple(map(renamed, record.settings))})


def read_surrogate(source: Source) -> SurrogateRecord | None:
    """Return the record of one surrogate, or None if it has no card.

    Raises:
        RelossError: its card is damaged.
    """
    card = _part(source, "card", OBJECT)
    if card is None:
        return None
    check_hash(card, "fit", source.where("card"))
    values = {name: value for name, value in card.items() if name in SurrogateRecord.model_fields}
    values |= {"name": source.name, "source": source}
    record = _validated(SURROGATE, values, source.where("card"))
    if "spearman" not in record.fit:
        raise damage(source.where("card"), "wrong: fit.spearman")
    return record


def checkpoint_rankings(source: Source) -> dict[tuple[str, str], Figures]:
    """Return the rankings in the part `diagnostics`, of one surrogate or of all losses of an experiment; see `Records`.

    Raises:
        RelossError: the part is damaged.
    """
    experiment, where = experiment_of(source.name), source.where("diagnostics")
    if not source.name.endswith(DIAGNOSTICS):
        entry = _part(source, "diagnostics", OBJECT)
        entries = [] if entry is None else [{**entry, "folder": source.name.removeprefix(f"{experiment}/")}]
    else:
        entries = _part(source, "diagnostics", OBJECTS) or []
    rankings = {}
    for entry in entries:
        figures = {name: value for name, value in entry.items() if name not in ("loss", "metric", "folder")}
        rankings[experiment, str(entry.get("folder", ""))] = _validated(FIGURES, figures, where)
    return rankings


def _part(source: Source, part: str, kind: TypeAdapter[T]) -> T | None:
    """Return a part of a record, validated, or None if it is absent."""
    value = source.read(part)
    return None if value is None else _validated(kind, value, source.where(part))


def _validated(kind: TypeAdapter[T], value: Any, where: str) -> T:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        wrong = dict.fromkeys(".".join(map(str, detail["loc"])) or "all of it" for detail in error.errors())
        raise damage(where, f"wrong: {', '.join(wrong)}") from None


def experiment_of(name: str) -> str:
    """Return the experiment of the record called `name`: the first two parts, <task>/<data>_<model>."""
    return "/".join(name.split("/")[:2])
