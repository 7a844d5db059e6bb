"""The process that talks to Weights & Biases on behalf of one run: `python -m reloss.tracking.worker`.

`WandbTracker` starts it. It reads one call per line from standard input: a JSON object with the name of a method of
`Worker` and its arguments. When it ends, it writes one object to standard output: the problems it met, and the
processor time that it and W&B's own process took. If the run dies, the input ends without `finish`, and the W&B run is
marked as crashed. Imports no torch.
"""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

RUN_FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(\w+)")
CRASHED = 1
INIT_SECONDS = 30
STATS_SECONDS = 60  # between two measurements of the machine
ESSENTIAL = ("start", "log", "replay", "finish")  # if one fails, there is no run; other calls are skipped


class Worker:
    """One W&B run.

    Attributes:
        problems: the problems met so far.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._run: Any = None
        self._rows = 0

    def start(
        self, folder: str, pid: int, config: dict[str, Any], project: str = "", mode: Any = "", **settings: Any
    ) -> None:
        """Start a W&B run below `folder`, linked to the previous one there by `resumed_from` in its config.

        Args:
            folder: the folder.
            pid: process whose use of the machine W&B measures.
            config: W&B's config of the run.
            project: the project; by default WANDB_PROJECT, or `reloss`.
            mode: online or offline; by default WANDB_MODE, or online if a key is set and the server answers.
            settings: further arguments of `wandb.init`: name, group, job_type, tags, entity.
        """
        import wandb

        # Copies for a later upload are kept next to the run, not in the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(folder) / "wandb" / "data"))
        previous = run_folders(Path(folder))
        config["resumed_from"] = run_id(previous[-1]) if previous else None
        quiet = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, program="reloss", x_save_requirements=False,
            x_stats_pid=pid, x_stats_sampling_interval=STATS_SECONDS,
        )  # fmt: skip
        project = project or os.environ.get("WANDB_PROJECT") or "reloss"
        mode = mode or os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        common = {"project": project, "dir": folder, "settings": quiet, "config": config, **settings}
        if mode == "online" and (problem := obstacle(wandb.setup().settings.base_url)):
            self.problems.append(f"{problem}: offline instead, `reloss sync` uploads it")
            mode = "offline"
        try:
            self._run = wandb.init(mode=mode, **common)
        except wandb.Error as error:
            if mode != "online":
                raise
            self.problems.append(f"{_named(error)}: offline instead, `reloss sync` uploads it")
            self._run = wandb.init(mode="offline", **common)
        # W&B's own step only counts rows; the x axis shows the step of the training or of the fit.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any]) -> None:
        """Log one row."""
        self._run.log(values)
        self._rows += 1

    def replay(self, path: str, lines: int) -> None:
        """Log the first `lines` lines of a metrics file, written before the run was interrupted."""
        with open(path, encoding="utf-8") as file:
            for _, line in zip(range(lines), file, strict=False):
                self.log(json.loads(line))

    def figure(self, name: str, path: str, step: int) -> None:
        """Log a PNG file."""
        import wandb

        self.log({"step": step, name: wandb.Image(path)})

    def artifact(
        self,
        name: str,
        type: str,
        files: dict[str, str],
        metadata: dict[str, Any],
        references: dict[str, str],
        table: dict[str, float],
        used: bool,
    ) -> None:
        """Log an artifact; the same content is the same version whether the run produced it or `used` it.

        Args:
            name: name of the artifact.
            type: kind of the artifact, such as model.
            files: paths by their names in the artifact; W&B uploads them.
            metadata: values shown with the artifact.
            references: addresses by their names in the artifact; W&B only notes them. (It would read and hash every
                file behind a `file:` address.)
            table: values by name, stored as a table if there are any.
            used: whether the artifact is an input of the run rather than an output.
        """
        import wandb

        artifact = wandb.Artifact(name, type=type, metadata=metadata)
        for inside, path in files.items():
            artifact.add_file(path, name=inside)
        for inside, address in references.items():
            artifact.add_reference(address, name=inside)
        if table:
            artifact.add(wandb.Table(columns=["score", "value"], data=[list(row) for row in table.items()]), "scores")
        if used:
            # run.use_artifact refuses to work offline. Online it makes this call for an artifact that is not uploaded
            # yet, and the upload then connects the artifact to the run.
            self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self._run.log_artifact(artifact)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Log the final scores, end the run and W&B's own process, and check that all rows are on disk."""
        import wandb

        offline, folder = self._run.offline, Path(self._run.dir).parent
        self._run.summary.update(summary)
        self._run.finish(exit_code=exit_code)
        self._run = None
        wandb.teardown()
        for path in folder.glob("run-*.wandb"):  # one file, or none if WANDB_MODE is disabled
            contents = read_run(path)
            if contents["rows"] < self._rows or contents["exit_code"] is None:
                self.problems.append(f"{contents['rows']} of {self._rows} rows are in {path}; is the disk full?")
            elif not offline:
                path.with_name(path.name + ".synced").touch()


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the W&B runs of a record, the oldest first."""
    folders = [path for path in folder.glob("wandb/*run-*") if RUN_FOLDER.fullmatch(path.name)]
    return sorted(folders, key=lambda path: path.name.partition("run-")[2])


def run_id(folder: Path) -> str:
    """Return the id of the run in one of the folders that `run_folders` returns."""
    return folder.name.rpartition("-")[2]


def read_run(path: Path) -> dict[str, Any]:
    """Return the number of `rows` in a file `run-<id>.wandb`, and its `exit_code`, None if the run has no end."""
    rows, exit_code = 0, None
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        rows += kind == "history"
        exit_code = record.exit.exit_code if kind == "exit" else exit_code
    return {"rows": rows, "exit_code": exit_code}


def destination(path: Path) -> dict[str, str]:
    """Return the `project` and the `entity` of the run in a file `run-<id>.wandb`, as far as they are set."""
    run = next((record.run for record in _records(path) if record.WhichOneof("record_type") == "run"), None)
    names = {"project": run.project, "entity": run.entity} if run is not None else {}
    return {name: value for name, value in names.items() if value}


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a file `run-<id>.wandb` up to its end, or to where it was cut off."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    with suppress(AssertionError):  # the file is empty, or its end was cut off
        store.open_for_scan(str(path))
        while data := store.scan_data():
            record = Record()
            record.ParseFromString(data)
            yield record


def obstacle(address: str) -> str:
    """Return why no server answers at `address`, or the empty string. (Without a server wandb.init waits for ever.)"""
    import requests

    try:
        requests.head(address, timeout=INIT_SECONDS)
    except requests.RequestException as error:
        return _named(error)
    return ""


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")


def main() -> None:
    """Serve calls until `finish`, or until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which then ends this process
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is not an answer
    worker = Worker()
    exit_code = 1
    for line in sys.stdin:
        call = json.loads(line)
        name = call.pop("call")
        try:
            getattr(worker, name)(**call)
        except Exception as error:
            worker.problems.append(_named(error))
            if name in ESSENTIAL:
                break
        if name == "finish":
            exit_code = 0
            break
    else:
        worker.finish({}, exit_code=CRASHED)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    print(json.dumps({"problems": worker.problems, "cpu_seconds": round(seconds, 2)}), file=answers, flush=True)
    os._exit(exit_code)  # W&B's exit hooks can wait for a process that has ended


if __name__ == "__main__":
    main()
