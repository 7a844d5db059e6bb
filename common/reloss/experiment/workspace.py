"""Where everything lies on disk. No other module builds these paths.

    RUNS/<task>/<data>_<model>/              one experiment
        <loss>[@<variant>]/seed<N>/          the record of one run
        bank[_<hash>]/                       the prediction bank of one protocol, shared by all seeds
        bank_refit_<hash>/                   the predictions that a second fit learns from
        surrogates/<hash>/                   a fitted surrogate, named by its options; all seeds share it
        diagnostics/                         how well the losses rank the experiment's checkpoints
    RUNS/sweep/                              logs and notes of the jobs of sweeps; slurm/ holds the scheduler's own logs
    RUNS/tables/                             the tables last sent to Weights & Biases

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reloss.experiment.run_spec import RunSpec

RECORD_PATTERN = "*/seed*"
"""Glob pattern of the records below an experiment's folder."""


@dataclass(frozen=True)
class Workspace:
    """The folder of the records, and the folder of the data sets."""

    runs: Path = Path("runs")
    data: Path = Path("data")

    def experiment(self, name: str) -> Path:
        """Return the folder of everything that an experiment's runs produce."""
        return self.runs / name

    def record(self, run: RunSpec) -> Path:
        """Return the folder of a run's record."""
        return self.experiment(run.experiment) / run.loss_with_variant / f"seed{run.seed}"

    def records(self, experiment: str) -> list[Path]:
        """Return the folders of an experiment's records, sorted."""
        return sorted(self.experiment(experiment).glob(RECORD_PATTERN))

    def name(self, folder: Path) -> str:
        """Return the name of a record or a surrogate: its folder relative to RUNS, with slashes."""
        return folder.relative_to(self.runs).as_posix()

    def bank(self, experiment: str, key: str = "") -> Path:
        """Return the folder of an experiment's prediction bank; see `reloss.experiment.banks.bank_folder` for `key`."""
        return self.experiment(experiment) / (f"bank_{key}" if key else "bank")

    def held_out_bank(self, bank: Path) -> Path:
        """Return the folder of the bank of predictions for validation examples, which belongs to the folder `bank`."""
        return bank.with_name(f"{bank.name}_held_out")

    def surrogate(self, experiment: str, name: str) -> Path:
        """Return the folder of the fitted surrogate called `name`, the hash of its options."""
        return self.experiment(experiment) / "surrogates" / name

    def surrogates(self, experiment: str) -> list[Path]:
        """Return the folders of an experiment's surrogates, finished or not, sorted."""
        return sorted(self.experiment(experiment).glob("surrogates/*"))

    def diagnostics(self, experiment: str) -> Path:
        """Return the folder of an experiment's diagnostics."""
        return self.experiment(experiment) / "diagnostics"

    @property
    def sweep(self) -> Path:
        """The folder of the logs and notes of sweeps."""
        return self.runs / "sweep"

    def sweep_note(self, job: str) -> Path:
        """Return the file with the note on the job called `job`."""
        return self.sweep / f"{job}.json"

    def sweep_log(self, job: str, node: int = 0) -> Path:
        """Return the log of the job called `job`; on several nodes, each has its own."""
        return self.sweep / (f"{job}.log" if node == 0 else f"{job}.node{node}.log")

    @property
    def slurm_logs(self) -> Path:
        """The folder of the logs that Slurm's jobs write themselves."""
        return self.sweep / "slurm"

    @property
    def tables(self) -> Path:
        """The folder of the tables last sent to Weights & Biases."""
        return self.runs / "tables"
