"""Render results/<task>.md and the README's table from the records in results/runs: `make results`.

`python -m results.render --add RUNS` first copies the finished records below RUNS into results/runs: configs,
summaries, environments and metrics, no weights and no data; so too the cards and histories of surrogates.
"""

import shutil
import sys
from pathlib import Path

from reloss.experiment.task import tasks
from reloss.files import read_json, write_text
from reloss.report.tables import HEADERS, Row, cells, render, table

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: begin, written by `make results` -->", "<!-- results: end -->"
KEPT = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")


def add(runs: Path) -> None:
    """Copy the finished records below `runs`, and the cards of surrogates, into results/runs."""
    for summary in runs.glob("*/*/*/seed*/summary.json"):
        if read_json(summary)["status"] == "finished":
            _copy(summary.parent, runs, KEPT)
    for card in runs.glob("*/*/surrogates/*/surrogate.json"):
        _copy(card.parent, runs, ("surrogate.json", "history.jsonl"))


def _copy(folder: Path, runs: Path, names: tuple[str, ...]) -> None:
    target = HERE / "runs" / folder.relative_to(runs)
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(folder / name, target / name)


def rendered() -> dict[Path, str]:
    """Return what each rendered file must hold."""
    files, summary = {}, []
    for name in tasks():
        rows = table(name, HERE / "runs")
        files[HERE / f"{name}.md"] = f"# {name}: results\n\n{render(rows, 'md')}\n"
        summary += [row for row in rows if row.records]
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    files[README] = f"{before}{BEGIN}\n{_short(summary)}\n{END}{after}"
    return files


def _short(rows: list[Row]) -> str:
    """Return the README's table: the rows that were run, without the columns of provenance."""
    kept = [index for index, header in enumerate(HEADERS) if header not in ("published", "error, %")]
    lines = [[HEADERS[index] for index in kept], ["---"] * len(kept)]
    lines += [[cells(row)[index] for index in kept] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str]) -> None:
    """Add records if asked, then write the rendered files."""
    if arguments[:1] == ["--add"]:
        add(Path(arguments[1]))
    for path, text in rendered().items():
        write_text(path, text)
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
