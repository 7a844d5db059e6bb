"""Render the tables of results/ and of the README from the committed records: `make results`.

The `docker run` lines of the READMEs too, from the registry of experiments.

`python -m results.render --add RUNS [rare|ablation]` first copies the ended records below RUNS into results/runs, or
into results/rare/runs or results/ablation/runs: configs, summaries, environments and metrics, no weights and no data,
hence no examples and no pictures of persons either; so too of surrogates the cards, histories and what `reloss report`
draws, and the diagnostics.
"""

import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from reloss.experiment.record_parts import LiveFolder
from reloss.experiment.records import read_records, read_surrogate
from reloss.experiment.task import Task, tasks
from reloss.pipeline.checkpoint_ranking import read_picture, write_picture
from reloss.report.correlation_table import correlation_rows, correlation_table
from reloss.report.table import PROVENANCE, Table
from reloss.report.tables import read_table
from reloss.report.task_table import task_rows, task_table
from reloss.runtime.files import read_json, write_text

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- {}: begin, written by `make results` -->", "<!-- {}: end -->"
DOCKER = "docker run --rm --gpus all{} -v data:/data -v runs:/runs reloss run {} --loss reloss --seed 0"
LARGE = ("imagenet", "coco")  # whose batches overfill the 64 MB of shared memory that Docker gives
KEPT = ("config.yaml", "environment.json", "summary.json", "metrics.jsonl")
DIAGNOSED = ("diagnostics.json", "curves.png", "checkpoints.png")
RARE = tuple(f"classification/{name}_cnn" for name in ("digits8", "cifar10cat", "cifar10car"))  # have their own page


def add(runs: Path, into: Path) -> None:
    """Copy what is kept of ended records, of surrogates and of diagnostics below `runs` into the folder `into`."""
    for summary in runs.glob("*/*/*/seed*/summary.json"):
        if read_json(summary)["status"] in ("finished", "failed"):
            _copy(summary.parent, runs, into, KEPT)
    for card in runs.glob("*/*/surrogates/*/surrogate.json"):
        _copy(card.parent, runs, into, ("surrogate.json", "history.jsonl"))
        surrogate = read_surrogate(LiveFolder(card.parent.relative_to(runs).as_posix(), card.parent))
        drawn = read_picture(surrogate) if surrogate else None
        if drawn is not None:
            write_picture(into / card.parent.relative_to(runs), drawn)
    for path in runs.glob("*/*/diagnostics/diagnostics.json"):
        _copy(path.parent, runs, into, DIAGNOSED)


def _copy(folder: Path, runs: Path, into: Path, names: tuple[str, ...]) -> None:
    target = into / folder.relative_to(runs)
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)


def rendered() -> dict[Path, str]:
    """Return what each rendered file must hold."""
    files, summary = {}, []
    records = read_records(HERE / "runs")
    for name, task in tasks().items():
        rows = [row for row in task_rows(task, records.runs) if row.experiment not in RARE]
        files[HERE / f"{name}.md"] = f"# {name}: results\n\n{task_table(rows).markdown()}\n"
        summary += [row for row in rows if row.records]
    files[README] = _between(README, _short(task_table(summary)))
    ranked = [row for row in correlation_rows(records) if row.experiment not in RARE]
    files[HERE / "correlation.md"] = f"# How well each loss ranks\n\n{correlation_table(ranked).markdown()}\n"
    rare, ablation = HERE / "rare" / "README.md", HERE / "ablation" / "README.md"
    files[rare] = _between(rare, "\n\n".join(_tuned(rare, score) for score in ("average_precision", "binary_f1")))
    table = read_table("ablation", ablation.parent / "runs").markdown()
    files[ablation] = _between(ablation, f"{_tuned(ablation, 'accuracy')}\n\n{table}")
    pages: dict[Path, Iterable[Task]] = {README: tasks().values()}
    pages |= {HERE.parent / "tasks" / name / "README.md": [task] for name, task in tasks().items()}
    for page, of in pages.items():
        files[page] = _put(files.get(page) or page.read_text(encoding="utf-8"), "docker", _docker(of))
    return files


def _tuned(page: Path, score: str) -> str:
    return read_table("classification", page.parent / "runs", score).markdown()


def _between(page: Path, text: str) -> str:
    """Return the page with `text` between its markers of results."""
    return _put(page.read_text(encoding="utf-8"), "results", text)


def _put(page: str, what: str, text: str) -> str:
    """Return the page with `text` between the markers of `what`.

    Raises:
        ValueError: it has none.
    """
    begin, end = BEGIN.format(what), END.format(what)
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"no '{begin}' and '{end}' in the page that begins with {page[:40]!r}")
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def _docker(of: Iterable[Task]) -> str:
    """Return the `docker run` line of each experiment of the tasks."""
    lines = ["```sh"]
    for task in of:
        for make in task.experiments.values():
            config: Any = make()
            lines.append(DOCKER.format(" --shm-size 8g" if config.data.name in LARGE else "", config.name))
    return "\n".join([*lines, "```"])


def _short(table: Table) -> str:
    """Return the README's table: without the columns for provenance, the published number and the error."""
    headers = [header for header in table.headers if header not in ("published", "error, %", *PROVENANCE)]
    return replace(table.select(headers), note="").markdown()


def main(arguments: list[str]) -> None:
    """Add records if asked, then write the rendered files."""
    if arguments[:1] == ["--add"]:
        add(Path(arguments[1]), HERE.joinpath(*arguments[2:3], "runs"))
    for path, text in rendered().items():
        write_text(path, text)
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
