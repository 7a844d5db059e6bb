"""Render every table of results/ and of the README, and docs/claims.md, from the committed records: `make results`.

No number is typed by hand: tables are rendered whole, and pages with prose have markers between which their tables
stand. The `docker run` lines are rendered too, from the list of experiments.

Records are added with `reloss pack RUNS results/records/GROUP`; see results/README.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from reloss.experiment.records import RunRecord, read_records
from reloss.experiment.task import Task, tasks
from reloss.report.correlation_table import correlation_rows, correlation_table
from reloss.report.pooled_table import PooledRow, pooled_rows, pooled_table
from reloss.report.tables import read_table
from reloss.report.task_table import task_rows, task_table
from reloss.runtime.files import write_text
from tools.claims import claims_page
from tools.field_chart import field_chart
from tools.field_records import Results
from tools.predictors import predictors_table
from tools.verdict import compared, pooled_verdict, sentence, short_table, unbroken, verdict
from tools.zoo_page import field_page, standing_with_chart, zoo_page

ROOT = Path(__file__).resolve().parent.parent
README, DOCKER_PAGE, RESULTS = ROOT / "README.md", ROOT / "docs" / "docker.md", ROOT / "results"
RECORDS = RESULTS / "records"
"""Packed records, in a folder per group: main, ablation, rare, keel and tiny; tools.field_records reads `field`."""
DOCKER = "docker run --rm --gpus all{} -v data:/data -v runs:/runs reloss run {} --loss reloss --seed 0"
LARGE = ("imagenet", "coco")  # batches of these overfill the 64 MB of shared memory that Docker gives
WHY_IT_WINS, CLAIMS = ROOT / "docs" / "why-it-wins.md", ROOT / "docs" / "claims.md"
ZOO, FIELD = ROOT / "docs" / "zoo.md", RESULTS / "field.md"
RARE = ("digits8_cnn", "cifar10cat_cnn", "cifar10car_cnn", "rare_digit_mlp", "keel_*")  # shown on rare.md


WHY_TABLES = (
    ("multi30k", "sacreBLEU", "nmt", "multi30k_de_en_nat"),
    ("lite0", "PCK", "pose", "lsp_lite0"),
    ("lsp", "PCK", "pose", "lsp_resnet18"),
    ("squad", "f1", "mrc", "squad_minilm"),
)
"""Tables of docs/why-it-wins.md: name, score, task and experiment."""


def rendered_pages() -> dict[Path, str]:
    """Return the text of every rendered page, by its path."""
    pages = {}
    records, recorded_rows = read_records(RECORDS / "main"), []
    configs = [make() for task in tasks().values() for name, make in task.experiments.items() if not _is_rare(name)]
    for name, task in tasks().items():
        rows = [row for row in task_rows(task, records.runs) if not _is_rare(row.experiment)]
        pages[RESULTS / f"{name}.md"] = f"# {name}: results\n\n{task_table(rows).markdown()}\n"
        recorded_rows += [row for row in rows if row.records]
    ranked = [row for row in correlation_rows(records) if not _is_rare(row.experiment)]
    pages[RESULTS / "correlation.md"] = f"# How well each loss ranks\n\n{correlation_table(ranked).markdown()}\n"
    keel = read_records(RECORDS / "keel").runs
    pooled = {score: pooled_rows(tasks()["classification"], keel, score, "keel_*") for score in ("binary_f1", "mcc")}
    rare_verdict, short = pooled_verdict(pooled["binary_f1"]), short_table(configs, records.runs)
    in_one_sentence = sentence(compared(short, pooled["binary_f1"], "F1"))
    tables = {
        README: "\n\n".join([in_one_sentence, f"{rare_verdict} {verdict(recorded_rows)}", unbroken(short.markdown())]),
        RESULTS / "rare.md": f"{_tuned('rare', 'average_precision')}\n\n{_tuned('rare', 'binary_f1')}",
        RESULTS / "ablation.md": f"{_tuned('ablation', 'accuracy')}\n\n{_ablation()}",
    }
    for page, text in tables.items():
        pages[page] = put_between(page.read_text(encoding="utf-8"), "results", text)
    pages[WHY_IT_WINS] = _why_it_wins(keel, pooled)
    pages[CLAIMS] = claims_page()
    pages[ZOO] = put_between(ZOO.read_text(encoding="utf-8"), "zoo", zoo_page())
    pages[FIELD] = put_between(FIELD.read_text(encoding="utf-8"), "field", field_page())
    pages[FIELD.with_suffix(".svg")] = field_chart(Results())
    pages[README] = put_between(pages[README], "field", standing_with_chart(Results()))
    commands: dict[Path, Iterable[Task]] = {DOCKER_PAGE: tasks().values()}
    commands |= {ROOT / "tasks" / name / "README.md": [task] for name, task in tasks().items()}
    for page, shown_tasks in commands.items():
        pages[page] = put_between(page.read_text(encoding="utf-8"), "docker", _docker_lines(shown_tasks))
    return pages


def _is_rare(experiment: str) -> bool:
    return any(fnmatch(experiment, f"classification/{pattern}") for pattern in RARE)


def _why_it_wins(keel: Sequence[RunRecord], pooled: Mapping[str, Sequence[PooledRow]]) -> str:
    """Return docs/why-it-wins.md with its tables."""
    task = tasks()["classification"]
    tables = {
        **{name: _tuned("main", *rest) for name, *rest in WHY_TABLES},
        "keel": "\n\n".join(pooled_table(rows, score).markdown() for score, rows in pooled.items()),
        "digit": read_table("classification", RECORDS / "rare", "binary_f1", "rare_digit_mlp").markdown(),
        "predictors": predictors_table(task, keel, "binary_f1", (), "keel_*").markdown(),
    }
    page = WHY_IT_WINS.read_text(encoding="utf-8")
    for name, text in tables.items():
        page = put_between(page, name, text)
    return page


def _tuned(group: str, score: str, task: str = "classification", pattern: str = "") -> str:
    return read_table(task, RECORDS / group, score, pattern).markdown()


def _ablation() -> str:
    return read_table("ablation", RECORDS / "ablation").markdown()


def _docker_lines(shown_tasks: Iterable[Task]) -> str:
    """Return a code block with the `docker run` line of each experiment of the tasks."""
    lines = ["```sh"]
    for task in shown_tasks:
        for make in task.experiments.values():
            config: Any = make()
            lines.append(DOCKER.format(" --shm-size 8g" if config.data.name in LARGE else "", config.name))
    return "\n".join([*lines, "```"])


def put_between(page: str, name: str, text: str, command: str = "make results") -> str:
    """Return the page with `text` between its markers called `name`, which name the command that writes it.

    Raises:
        ValueError: the page lacks the markers.
    """
    begin, end = f"<!-- {name}: begin, written by `{command}` -->", f"<!-- {name}: end -->"
    before, marker, rest = page.partition(begin)
    if not marker or end not in rest:
        raise ValueError(f"no '{begin}' and '{end}' in the page that begins with {page[:40]!r}")
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Write every rendered page, and print its path."""
    for path, text in rendered_pages().items():
        write_text(path, text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
