"""`reloss pack`: what tables and the report are made from, of all ended runs, in a few files that can be committed.

Weights, predictions, banks and examples of the data stay where they are.
"""

from pathlib import Path
from typing import NamedTuple

from reloss.experiment.packing import Parts, add_to_pack, diagnostics_parts, run_parts, surrogate_parts
from reloss.experiment.record_parts import skipping
from reloss.experiment.records import read_runs, read_surrogate, surrogate_sources
from reloss.experiment.status import Status
from reloss.pipeline.pictures import read_picture
from reloss.report.tables import existing
from reloss.runtime.errors import UsageError

ENDED = (Status.FINISHED, Status.FAILED)


class Packed(NamedTuple):
    """How much was packed, and a message for each damaged record that was skipped."""

    runs: int
    surrogates: int
    damaged: list[str]


def pack(runs: Path, packed: Path) -> Packed:
    """Pack the finished and the failed runs below `runs`, and all surrogates and diagnostics, into the folder `packed`.

    Records that `packed` already holds stay, but for those with the same name, which are replaced.

    Raises:
        UsageError: there is no folder `runs`, or no run in it has ended.
        RelossError: `packed` holds damaged records, or cannot be written.
    """
    damaged: list[str] = []
    run_lines: dict[str, Parts] = {}
    for run in read_runs(existing(runs), damaged):
        with skipping(damaged):
            if run.status in ENDED:
                run_lines[run.name] = run_parts(run)
    if not run_lines:
        raise UsageError(f"no run below {runs} has finished or failed; `reloss status NAME --runs {runs}` shows them")
    surrogate_lines: dict[str, Parts] = {}
    surrogates = 0
    for source in surrogate_sources(runs, damaged):
        with skipping(damaged):
            surrogate = read_surrogate(source)
            parts = surrogate_parts(surrogate, read_picture(surrogate)) if surrogate else diagnostics_parts(source)
            surrogates += surrogate is not None
            if parts:
                surrogate_lines[source.name] = parts
    add_to_pack(packed, run_lines, surrogate_lines)
    return Packed(len(run_lines), surrogates, damaged)
