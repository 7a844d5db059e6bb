"""The stages of an experiment: baseline -> learn -> train -> evaluate.

RUNS/<task>/<data>_<model>/bank/                          predictions of the recorded baseline, shared by all seeds
RUNS/<task>/<data>_<model>/surrogates/<hash>/             one surrogate for all seeds, named by how it was learned
RUNS/<task>/<data>_<model>/<loss>[@<variant>]/seed<N>/    one record a run
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from reloss.experiment import environment
from reloss.experiment.config import LEARNED_LOSSES, Experiment
from reloss.experiment.record import Record, leaving_out, read_summary, record_folder
from reloss.experiment.run_spec import RunSpec, variant_name
from reloss.experiment.seeds import seed_everything
from reloss.experiment.settings import baseline_settings, override, tuned
from reloss.experiment.task import Run, Task, comparable, find_experiment
from reloss.learning import FitResult, LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.picture import measure_picture
from reloss.metrics import get_metric
from reloss.pipeline.checkpoint_ranking import diagnose_loss, finished_runs, read_predictions, write_picture
from reloss.runtime import distributed
from reloss.runtime.checkpoint import remove_checkpoint
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json, remove_stale, short_hash, write_text
from reloss.runtime.lock import locked
from reloss.runtime.progress import say
from reloss.runtime.signals import Terminated, terminable
from reloss.surrogates import SurrogateLoss, load
from reloss.tracking.artifacts import bank_artifact, surrogate_artifact
from reloss.tracking.client import Track, WandbMirror, describe_run

Stage = Literal["all", "baseline", "learn", "train", "evaluate"]
Resume = Literal["auto", "never"]


@dataclass(frozen=True)
class Request:
    """What `reloss run` was asked for."""

    experiment: str
    loss: str
    seed: int
    stage: Stage = "all"
    settings: tuple[str, ...] = ()
    data: Path = Path("data")
    runs: Path = Path("runs")
    track: Track = "wandb"
    resume: Resume = "auto"
    allow_changed_data: bool = False


def run(request: Request) -> Path:
    """Go through the stages that were asked for; what is finished already is not done again. Returns the record.

    Raises:
        UsageError: an unknown experiment, loss or setting, or a stage whose input is missing.
        RelossError: anything else that stops the run; the record says `failed` and keeps what was recorded.
    """
    RunSpec.resolve(request.experiment, request.loss, request.seed, request.settings)
    task, config = find_experiment(request.experiment)
    job = _Job(task, override(config, request.settings), request)
    distributed.start()
    with terminable():
        if request.stage in ("all", "baseline"):
            job.run_what_is_needed()
        if request.stage == "baseline":
            return job.baseline()
        if request.stage == "learn":
            return job.learn()
        return job.train()


def surrogate_folder(request: Request) -> Path | None:
    """Return where the surrogate of a run is or will be, or None as long as its bank is not complete.

    Raises:
        RelossError: the bank is damaged, or was recorded with other data, model or recording settings.
    """
    task, config = find_experiment(request.experiment)
    job = _Job(task, override(config, request.settings), request)
    bank = job._bank()
    return job._fit(bank)[1] if bank is not None else None


@dataclass
class _Job:
    task: Task
    config: Experiment
    request: Request

    @property
    def home(self) -> Path:
        return self.request.runs / self.config.name

    @cached_property
    def data_fingerprint(self) -> str:
        return self.task.data_fingerprint(self.config, self.request.data)  # of many images and labels it takes a while

    def record_folder(self, loss: str, seed: int) -> Path:
        return record_folder(self.request.runs, self.config.name, loss, self.request.settings, seed)

    def _is_baseline(self, loss: str, seed: int) -> bool:
        """Return whether it is the run that records the bank: of its seed, with nothing tuned for the loss."""
        recorded = loss == self.config.ordinary_loss and seed == self.config.recording.seed
        return recorded and not tuned(self.config, self.request.settings)

    # Stages

    def run_what_is_needed(self) -> None:
        """Run those of other experiments whose records this one uses, unless they are finished."""
        for experiment, loss, seed in self.config.required_runs():
            request = replace(self.request, experiment=experiment, loss=loss, seed=seed, settings=(), stage="all")
            job = _Job(*find_experiment(experiment), request)
            if read_summary(job.record_folder(loss, seed)).get("status") != "finished":
                job.train()

    def baseline(self) -> Path:
        """Train with the ordinary loss while recording the bank, unless the bank is complete."""
        job, seed = self._baseline_job(), self.config.recording.seed
        bank = self._bank()
        if bank is None:
            return job._train(seed)
        say(f"bank is complete: {bank.path}")
        origin = bank.meta["origin"]
        if origin.get("protocol") != job.config.protocol():
            say(f"note: it was recorded with another recipe than this run's baseline would be, by {origin['record']}")
        return job.record_folder(job.request.loss, seed)

    def _baseline_job(self) -> _Job:
        """Return the run of the ordinary loss that this one is compared with: without what is tuned for each loss."""
        settings = baseline_settings(self.config, self.request.settings)
        request = replace(self.request, loss=self.config.ordinary_loss, settings=settings, stage="all")
        return _Job(self.task, override(find_experiment(self.config.name)[1], settings), request)

    def learn(self) -> Path:
        """Fit the surrogate of this loss on the bank, unless it is there; returns its folder."""
        if self.request.loss not in LEARNED_LOSSES:
            raise UsageError(
                f"'{self.request.loss}' is not learned; --stage learn goes with {' or '.join(LEARNED_LOSSES)}"
            )
        bank = self._bank()
        if bank is None:
            raise UsageError(f"no complete bank in {self.home / 'bank'}; run --stage baseline (or all) first")
        options, folder = self._fit(bank)
        if (folder / "surrogate.json").exists():
            say(f"surrogate is learned: {folder}")
            return folder
        seed_everything(options.seed)
        with self._learn_mirror(bank, options, folder) as mirror:
            surrogate = self.task.new_surrogate(self.config)
            fit = learn(surrogate, bank, self.config.metric, options, folder, on_validation=mirror.log)
            mirror.make(surrogate_artifact(self.config.name, folder))
            mirror.finish(fit, failed=False)
        return folder

    def _fit(self, bank: PredictionBank) -> tuple[LearnOptions, Path]:
        """Return how this loss's surrogate is fitted on the bank, and the folder that is named after it."""
        options = LearnOptions.model_validate(
            {**self.config.learn.model_dump(exclude_unset=True), **LEARNED_LOSSES[self.request.loss]}
        )
        surrogate = self.task.new_surrogate(self.config)
        described = [options.model_dump(), surrogate.options(), bank.fingerprint(), self.config.metric]
        return options, self.home / "surrogates" / short_hash(described)

    @contextmanager
    def _learn_mirror(self, bank: PredictionBank, options: LearnOptions, folder: Path) -> Iterator[WandbMirror]:
        """Yield the fit's run on W&B; the block is to finish it, else it ends as failed."""
        facts = {
            "loss": self.request.loss,
            "variant": variant_name([setting for setting in self.request.settings if setting.startswith("learn.")]),
            "learn": options.model_dump(mode="json"),
            "bank": bank.fingerprint(),
            "surrogate": {"folder": str(folder.relative_to(self.home))},
        }
        described = describe_run(self.config, "learn", environment.commit(), facts)
        mirror = WandbMirror(self.request.track if distributed.is_main() else "off", folder, **described)
        mirror.use(bank_artifact(self.config.name, bank))
        try:
            yield mirror
        except BaseException:
            mirror.finish({}, failed=True)
            raise

    def train(self) -> Path:
        """Train and evaluate with the loss, after the stages that it needs if all were asked for."""
        if self.request.stage == "all" and self.request.loss in LEARNED_LOSSES:
            self.baseline()
        if self.request.stage == "all" and self.config.fine_tunes and not self._baseline_weights():
            self._baseline_job()._train(self.request.seed)
        return self._train(self.request.seed)

    def _train(self, seed: int) -> Path:
        loss, stage = self.request.loss, self.request.stage
        folder = self.record_folder(loss, seed)
        summary = read_summary(folder)
        records_bank = stage != "evaluate" and self._is_baseline(loss, seed) and self._bank() is None
        if summary.get("status") == "finished" and stage != "evaluate" and not records_bank:
            say(f"finished already: {folder}")
            return folder
        if self.request.resume == "never" and any(folder.glob("*")):  # without its summary, too
            raise UsageError(
                f"{folder} holds a record; --resume never does not touch it: move it away, or change --runs"
            )
        if stage == "evaluate" and not summary:
            raise UsageError(f"no record to evaluate in {folder}; run --stage train (or all) first")
        facts: dict[str, Any] = {
            "experiment": self.config.name,
            "loss": loss,
            "variant": variant_name(self.request.settings),
            "settings": list(self.request.settings),
            "seed": seed,
            "protocol": self.config.protocol(),
            "score": self.config.score,
            "data": self.data_fingerprint,
        }
        self._check_data(facts, summary, folder)
        surrogate = None
        if loss in LEARNED_LOSSES:
            surrogate, facts["surrogate"] = self._surrogate()
        initial_weights = self._initial_weights()
        trains_anew = records_bank and not self._begun_bank(folder)
        distributed.barrier()  # all have looked at what is there before the main process changes it
        with _sole_writer(folder), _sole_writer(self.home / "bank") if records_bank else nullcontext():
            if distributed.is_main():
                remove_stale(folder)
                for path in folder.glob("error.*.log"):
                    path.unlink()
            record = Record(folder, self.config, facts=facts, track=self.request.track)
            if trains_anew:
                record.discard_checkpoint()
            with _status_of(record):
                with distributed.main_first():
                    bank = self._new_bank(record, trains_anew) if records_bank else None
                run = Run(self.config, loss, seed, self.request.data, record, bank, surrogate, initial_weights)
                if surrogate is not None:
                    record.mirror.use(surrogate_artifact(self.config.name, self.home / facts["surrogate"]["folder"]))
                if stage != "evaluate":
                    self.task.train(run)
                else:
                    record.mirror.replay(record.metrics.path, record.metrics.lines)
                scores = self.task.evaluate(run)
                run.flush_bank()
                if bank is not None and distributed.is_main():
                    bank.merge()
                    record.mirror.make(bank_artifact(self.config.name, bank))
                record.close("finished", scores, diagnostics=self._diagnostics(folder, surrogate))
                if bank is not None and distributed.is_main():
                    bank.finish()
                distributed.barrier()
        say(
            f"{self.config.name} {loss} seed {seed}: "
            + " ".join(f"{k} {v:.4f}" for k, v in scores.items())
            + f" ({folder})"
        )
        return folder

    def _check_data(self, facts: dict[str, Any], summary: dict[str, Any], folder: Path) -> None:
        """Refuse data that are not those of the record that goes on, or of the bank, unless they may have changed.

        Raises:
            UsageError: they are others.
        """
        now, seen = facts["data"], [(folder, summary.get("data"))]
        bank = self.home / "bank"
        if self.request.loss in LEARNED_LOSSES and (bank / "bank.json").exists():
            seen.append((bank, PredictionBank.open(bank).meta["origin"].get("data_fingerprint")))
        before = [summary["data_before"]] if "data_before" in summary else []
        for path, fingerprint in seen:
            if fingerprint in (None, now):
                continue
            if not comparable(fingerprint, now):
                say(f"note: {path} was recorded when data were not looked at as they are now; they may have changed")
                continue
            said = f"the data changed since {path} was recorded: their fingerprint was {fingerprint}, now {now}"
            if not self.request.allow_changed_data:
                raise UsageError(f"{said}; restore them, choose another --runs, or say --allow-changed-data")
            say(f"warning: {said}")
            before.append(fingerprint)
        if before:
            facts["data_before"] = ", ".join(dict.fromkeys(before))

    def _diagnostics(self, folder: Path, surrogate: SurrogateLoss | None) -> dict[str, float]:
        """Return how the run's loss, if learned or ordinary, ranks the checkpoints of this and all finished runs."""
        own = read_predictions(folder) if distributed.is_main() else None
        if own is None or (surrogate is None and self.request.loss != self.config.ordinary_loss):
            return {}
        network = surrogate or self.task.new_surrogate(self.config)
        runs = {**finished_runs(self.home, network.gold, own[1][0]), str(folder.relative_to(self.home)): own}
        return diagnose_loss(network, self.config.metric, list(runs.values()), surrogate is not None)

    # What the stages hand to each other

    def _bank(self) -> PredictionBank | None:
        """Return the complete bank, or None."""
        if not (self.home / "bank" / "bank.json").exists():
            return None
        bank = PredictionBank.open(self.home / "bank")
        if not bank.meta["complete"]:
            return None
        self._check_origin(bank)
        return bank

    def _begun_bank(self, folder: Path) -> bool:
        """Return whether there is a bank to go on with; one that others left before they recorded anything is none."""
        path = self.home / "bank"
        if not (path / "bank.json").exists():
            return False
        bank = PredictionBank.open(path)
        return len(bank) > 0 or bank.meta["origin"] == self._origin_of(folder)

    def _origin(self) -> dict[str, Any]:
        """Return what a bank must have in common with those who learn from it."""
        config = self.config.model_dump(mode="json")
        return {"experiment": self.config.name, **{name: config.get(name) for name in ("data", "model", "recording")}}

    def _check_origin(self, bank: PredictionBank) -> None:
        if {name: bank.meta["origin"].get(name) for name in self._origin()} != self._origin():
            raise UsageError(
                f"{bank.path} was recorded with other data, model or recording settings; choose another --runs"
            )

    def _origin_of(self, folder: Path) -> dict[str, Any]:
        """Return what the bank says of the record in `folder` that fills it."""
        return {
            **self._origin(),
            "protocol": self.config.protocol(),
            "record": str(folder.relative_to(self.home)),
            "data_fingerprint": self.data_fingerprint,
        }

    def _new_bank(self, record: Record, anew: bool) -> PredictionBank:
        """Return the bank that this baseline's processes fill: the one begun before a kill, or an empty one."""
        path, recording = self.home / "bank", self.config.recording
        if distributed.is_main():
            remove_stale(path)
            if anew:
                (path / "bank.json").unlink(missing_ok=True)
        if not (path / "bank.json").exists():
            PredictionBank.create(
                path,
                item_size=recording.item_size,
                max_bytes=recording.max_bytes,
                seed=recording.seed,
                origin=self._origin_of(record.path),
            )
        bank = PredictionBank.open(path, writer=distributed.rank(), writers=distributed.processes())
        self._check_origin(bank)
        if bank.meta["origin"]["record"] != str(record.path.relative_to(self.home)):
            raise UsageError(f"{path} is being recorded by {bank.meta['origin']['record']}; finish that run first")
        return bank

    def _surrogate(self) -> tuple[SurrogateLoss, dict[str, Any]]:
        """Return the learned surrogate, and what the summary says of it."""
        folder = self.learn()
        try:
            surrogate = load(folder)
        except RelossError as error:
            raise RelossError(f"{error}; remove {folder} to learn the surrogate anew from the bank") from error
        card = read_json(folder / "surrogate.json")
        return surrogate, {"folder": str(folder.relative_to(self.home)), **card["fit"]}

    def _initial_weights(self) -> Path | None:
        """Return the weights that a fine-tuning run starts from, those of the finished baseline of its seed."""
        if not self.config.fine_tunes:
            return None
        found = self._baseline_weights()
        if not found:
            raise UsageError(
                f"to fine-tune, first run --loss {self.config.ordinary_loss} --seed {self.request.seed} with the same "
                f"data, model and recipe: no finished one in {self.home}"
            )
        return found[0]

    def _baseline_weights(self) -> list[Path]:
        """Return the weights of this seed's finished baselines under the same protocol, fewest settings first."""
        found = []
        wanted = {"status": "finished", "loss": self.config.ordinary_loss, "protocol": self.config.protocol()}
        for folder in self.home.glob(f"{self.config.ordinary_loss}*/seed{self.request.seed}"):
            weights = folder / "checkpoint" / "weights.safetensors"
            with leaving_out():
                summary = read_summary(folder)
                if wanted.items() <= summary.items() and weights.exists():
                    found.append((len(summary["settings"]), weights))
        return [weights for _, weights in sorted(found)]


def learn(
    surrogate: SurrogateLoss,
    bank: PredictionBank,
    metric: str,
    options: LearnOptions,
    folder: Path,
    higher_is_better: bool = True,
    on_validation: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Fit `surrogate` on `bank`, going on from an interrupted fit, and leave it in `folder`; returns its figures.

    Of several processes all fit it together, and the main one writes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = folder / "fit.pt"
    with terminable(), _sole_writer(folder):
        if distributed.is_main():
            remove_stale(folder)
        result = fit_surrogate(
            surrogate,
            bank,
            get_metric(metric),
            higher_is_better=higher_is_better,
            options=options,
            device=device,
            checkpoint=checkpoint,
            on_validation=on_validation,
            distributed=distributed.processes() > 1,
        )
        if distributed.is_main():
            _keep(result, bank, metric, options, folder, higher_is_better)
    distributed.barrier()  # the others find it
    return result.summary()


def _keep(
    result: FitResult, bank: PredictionBank, metric: str, options: LearnOptions, folder: Path, higher_is_better: bool
) -> None:
    """Write what was learned into the folder."""
    write_text(folder / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in result.history))
    card = {
        "metric": metric,
        "higher_is_better": higher_is_better,
        "learn": options.model_dump(),
        "bank": bank.fingerprint(),
        "fit": result.summary(),
    }
    write_picture(folder, measure_picture(result.surrogate.cpu(), bank, get_metric(metric), options))
    result.surrogate.save_pretrained(folder, card)
    remove_checkpoint(folder / "fit.pt")
    say(
        f"surrogate in {folder}: Spearman with {metric} on {result.validation_items} held-out recorded items "
        f"{result.spearman:.4f} (the ordinary loss's own: {result.spearman_ordinary:.4f})"
    )


def _sole_writer(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder for the block; of several processes of a run, the main one does."""
    return locked(folder) if distributed.is_main() else nullcontext()


@contextmanager
def _status_of(record: Record) -> Iterator[None]:
    """Write into the record how the block ended; SIGTERM and Ctrl-C end it as `interrupted`.

    Where another process failed first, which brings the main one down, its cause is the run's.
    """
    try:
        yield
    except BaseException as error:
        told = isinstance(error, KeyboardInterrupt | Terminated)
        cause = str(error) if isinstance(error, RelossError) else f"{type(error).__name__}: {error}"
        if not distributed.is_main():
            if not told:
                with suppress(OSError, RelossError):
                    text = f"process {distributed.rank()}: {cause}\n\n{traceback.format_exc()}"
                    write_text(record.path / f"error.{distributed.rank()}.log", text)
            raise
        elsewhere = _cause_elsewhere(record.path)
        if told and not elsewhere:
            record.close("interrupted")
            raise
        with suppress(OSError, RelossError):  # as on a full disk, where `error` says it
            write_text(record.path / "error.log", traceback.format_exc())
            record.close("failed", cause=elsewhere or cause)
        if elsewhere:
            raise RelossError(elsewhere) from error
        raise


def _cause_elsewhere(folder: Path) -> str:
    """Return why the first of the other processes failed, if one did."""
    found = sorted(folder.glob("error.*.log"), key=lambda path: path.stat().st_mtime_ns)
    return found[0].read_text(encoding="utf-8").partition("\n")[0] if found else ""
