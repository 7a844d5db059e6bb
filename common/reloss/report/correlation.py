"""The table of how well each loss ranks: rank correlation with the metric, of held-out items and real checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reloss.experiment.config import LEARNED_LOSSES, Experiment, differing
from reloss.experiment.record import read_summaries
from reloss.experiment.task import tasks
from reloss.report.groups import Summary, commits
from reloss.report.tables import existing, written
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json

RANKINGS = {
    "spearman": "Spearman, recorded items",
    "spearman_synthetic": "Spearman, synthetic items",
    "spearman_checkpoints": "Spearman, checkpoints",
    "kendall_checkpoints": "Kendall, checkpoints",
    "spearman_late": "Spearman, late ones",
}
MEASURES = (*RANKINGS.values(), "difference to the ordinary loss", "items", "checkpoints")
HEADERS = (
    *("experiment", "loss", "surrogate", "metric", "published"),
    *(*MEASURES, "status", "command", "commit", "record"),
)
UNPUBLISHED = "unverified: value not recorded"
NOTE = (
    "Rank correlation of minus the loss with the metric. Recorded items: held-out batches of the baseline's training, "
    "the same for the ordinary loss; a surrogate's weights are chosen by its correlation on them (on the synthetic "
    "ones, if it learned from these alone), which flatters it a little. The difference is taken on them, and has no "
    "interval, as one surrogate serves all seeds. Synthetic items: such as the release learns from. Checkpoints: of "
    "all finished runs on the same validation examples, as `reloss diagnose` measures them; late ones are the second "
    "half of each run's. The paper's own values were not recorded."
)


@dataclass(frozen=True)
class CorrelationRow:
    """How one loss of an experiment ranks; `rankings` lacks what was not measured."""

    experiment: str
    loss: str
    surrogate: str
    metric: str
    published: str
    rankings: dict[str, float]
    difference: float | None
    items: int | None
    checkpoints: int | None
    status: str
    command: str
    commits: tuple[str, ...]
    records: tuple[str, ...]


def correlation_rows(runs: Path, damaged: list[str] | None = None) -> list[CorrelationRow]:
    """Return the rows of every experiment of all tasks, measured or not.

    Damaged records and files are said in the list `damaged`, if there is one, and left out.

    Raises:
        UsageError: there is no folder `runs`.
        RelossError: a record, a surrogate's card or a diagnosis is damaged, and there is no list to say so in.
    """
    return rows_of(runs, read_summaries(existing(runs), damaged), damaged)


def rows_of(runs: Path, summaries: Sequence[Summary], damaged: list[str] | None = None) -> list[CorrelationRow]:
    """Return the rows, given the summaries of the records below `runs`.

    Args:
        runs: the folder of the records.
        summaries: what `read_summaries` returns.
        damaged: takes what is wrong with files that cannot be read, which are then left out.

    Raises:
        RelossError: a card or a diagnosis is damaged, and there is no list to say so in.
    """
    rows = []
    for task in tasks().values():
        for make in task.experiments.values():
            config = make()
            mine = [summary for summary in summaries if summary["experiment"] == config.name]
            cards, diagnosed = _read(runs / config.name, damaged)
            rows += _of_experiment(config, mine, cards, diagnosed)
    return rows


def _read(home: Path, damaged: list[str] | None) -> tuple[dict[str, Any], dict[str | None, Any]]:
    """Return an experiment's cards of surrogates by folder, and figures of checkpoints by folder (None: ordinary)."""
    cards: dict[str, Any] = {}
    diagnosed: dict[str | None, Any] = {}

    def read(path: Path, check: Callable[[Any, Path], None] = lambda value, path: None) -> Any:
        try:
            value = read_json(path)
            check(value, path)
            return value
        except RelossError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            return None

    for path in sorted(home.glob("surrogates/*/surrogate.json")):
        folder = str(path.parent.relative_to(home))
        card = read(path, _check_card)
        if card is not None:
            cards[folder] = card
        if (path.parent / "diagnostics.json").exists():
            diagnosed[folder] = read(path.parent / "diagnostics.json", _check_figures)
    if (home / "diagnostics" / "diagnostics.json").exists():
        for entry in read(home / "diagnostics" / "diagnostics.json", _check_diagnosis) or []:
            diagnosed[entry.get("folder")] = entry
    return cards, diagnosed


def _check_card(card: Any, path: Path) -> None:
    """Raise RelossError if it is no card of a surrogate."""
    parts = [card.get(name) for name in ("fit", "learn")] if isinstance(card, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or "spearman" not in card["fit"]:
        raise RelossError(f"{path} is no card of a surrogate; restore it from a copy, or remove it and learn anew")


def _check_figures(figures: Any, path: Path) -> None:
    if not isinstance(figures, dict):
        raise RelossError(f"{path} is no diagnosis; remove it, and write it anew with `reloss diagnose`")


def _check_diagnosis(entries: Any, path: Path) -> None:
    for entry in entries if isinstance(entries, list) else [None]:
        _check_figures(entry, path)


def _of_experiment(
    config: Experiment,
    summaries: Sequence[Summary],
    cards: Mapping[str, Any],
    diagnosed: Mapping[str | None, Any],
) -> list[CorrelationRow]:
    ordinary: dict[str, float] = {}
    for fit in (card["fit"] for card in cards.values() if "spearman_ordinary" in card["fit"]):
        ordinary = {"spearman": fit["spearman_ordinary"], "validation_items": fit["validation_items"]}
    same = [summary for summary in summaries if summary["loss"] == config.ordinary_loss]
    rows = [_row(config, config.ordinary_loss, ordinary, _figures(diagnosed.get(None), same), same)]
    for loss, objective in (("approx", "value"), ("reloss", "rank")):
        mine = {folder: card for folder, card in cards.items() if card["learn"].get("objective") == objective}
        for folder, card in mine.items():
            users = [summary for summary in summaries if summary.get("surrogate", {}).get("folder") == folder]
            figures = _figures(diagnosed.get(folder), users)
            rows.append(_row(config, loss, card["fit"], figures, users, folder, _changed(loss, card, config)))
        if not mine and loss in config.losses:
            rows.append(_row(config, loss, {}, {}, []))
    return rows


def _figures(entry: dict[str, Any] | None, users: Sequence[Summary]) -> dict[str, Any]:
    """Return what was measured of checkpoints: by `reloss diagnose`, else at the end of the last run with the loss."""
    return entry or next((user["diagnostics"] for user in reversed(users) if user.get("diagnostics")), {})


def _changed(loss: str, card: Mapping[str, Any], config: Experiment) -> list[str]:
    """Return the settings in which a surrogate and its fit differ from what the experiment says today."""
    usual = {f"learn.{name}": value for name, value in config.learn.model_dump(mode="json").items()}
    own = {f"learn.{name}": value for name, value in card["learn"].items() if name not in LEARNED_LOSSES[loss]}
    usual |= config.model_dump(mode="json", exclude={"learn"})  # such as the structure of a task's surrogate
    own |= card.get("options", {})
    return differing(own, usual)


def _row(
    config: Experiment,
    loss: str,
    fit: Mapping[str, Any],
    figures: Mapping[str, Any],
    users: Sequence[Summary],
    folder: str = "",
    changed: Sequence[str] = (),
) -> CorrelationRow:
    measured = {**figures, **fit}
    found = {name: measured[name] for name in RANKINGS if name in measured}
    difference = fit["spearman"] - fit["spearman_ordinary"] if "spearman_ordinary" in fit else None
    command = f"reloss run {config.name} --loss {loss} --stage learn"
    if loss == config.ordinary_loss:
        command = f"reloss diagnose {config.name}"
    elif changed:
        command = shlex.join([*command.split(), "--set", *changed])
    return CorrelationRow(
        experiment=config.name,
        loss=loss,
        surrogate=" ".join([folder.removeprefix("surrogates/"), *(each.removeprefix("learn.") for each in changed)])
        or "none",
        metric=config.metric,
        published="none" if config.paper.startswith(("none", "reduced")) else UNPUBLISHED,
        rankings=found,
        difference=difference,
        items=fit.get("validation_items"),
        checkpoints=figures.get("checkpoints"),
        status=_status(config, found),
        command=users[0]["environment"].get("command", command) if users else command,
        commits=commits(users),
        records=(*([f"{config.name}/{folder}"] if folder else []), *(summary["record"] for summary in users)),
    )


def _status(config: Experiment, found: Mapping[str, float]) -> str:
    if not found:
        return "not run (no surrogate and no diagnosis)"
    if config.paper.startswith("reduced"):
        return config.paper
    return "not in the paper" if config.paper.startswith("none") else "measured, no verified number to compare with"


def cells(row: CorrelationRow) -> list[str]:
    """Return the texts of a row, in the order of HEADERS."""
    return [
        *(row.experiment, row.loss, row.surrogate, row.metric, row.published),
        *measured(row),
        *(row.status, f"`{row.command}`", ", ".join(row.commits) or "none", ", ".join(row.records) or "none"),
    ]


def measured(row: CorrelationRow) -> list[str]:
    """Return the texts of what was measured, in the order of MEASURES."""
    missing = "not run" if row.status.startswith("not run") else "not measured"
    return [
        *(f"{row.rankings[name]:.3f}" if name in row.rankings else missing for name in RANKINGS),
        _difference(row, missing),
        *(str(count) if count is not None else missing for count in (row.items, row.checkpoints)),
    ]


def _difference(row: CorrelationRow, missing: str) -> str:
    if row.difference is not None:
        return f"{row.difference:+.3f}"
    return "is the ordinary loss" if row.surrogate == "none" and row.rankings else missing


def render_correlation(rows: Sequence[CorrelationRow], format: str) -> str:
    """Return the table as `md`, `csv`, `tex` (booktabs) or `json`.

    Raises:
        UsageError: another format.
    """
    return written(format, HEADERS, [cells(row) for row in rows], NOTE, [asdict(row) for row in rows])
