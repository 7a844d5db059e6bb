"""The process that speaks to Weights & Biases for one run: `python -m reloss.tracking.worker`, started by tracking.

It reads one call a line from standard input, an object with the name of a function below and its arguments, and answers
with one object on standard output when it ends: what went wrong, and the processor time that it and W&B's own process
took. If the run dies, its input ends without `finish` and the W&B run is ended as crashed. Imports no torch.
"""

import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

RUN_FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(\w+)")
CRASHED = 1
INIT_SECONDS = 30
STATS_SECONDS = 60  # between two measurements of the machine
STOPPING = ("start", "log", "replay", "finish")  # without these there is no run; others are left out if they fail


class Mirror:
    """One W&B run.

    Attributes:
        problems: what went wrong so far.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._run: Any = None
        self._rows = 0

    def start(self, folder: str, pid: int, config: dict[str, Any], **settings: Any) -> None:
        """Begin a W&B run below `folder`, linked to the one before it there: `resumed_from` in its config.

        It is online if a key is set and the server answers, else offline.
        """
        import wandb

        # Copies of what W&B uploads later lie beside the run, not in the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(folder) / "wandb" / "data"))
        earlier = run_folders(Path(folder))
        config["resumed_from"] = run_id(earlier[-1]) if earlier else None
        quiet = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, program="reloss", x_save_requirements=False,
            x_stats_pid=pid, x_stats_sampling_interval=STATS_SECONDS,
        )  # fmt: skip
        project = os.environ.get("WANDB_PROJECT") or "reloss"
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
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
        # W&B's own step only counts rows; what is drawn on the x axis is the step of the training or of the fit.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any]) -> None:
        """Log one row."""
        self._run.log(values)
        self._rows += 1

    def replay(self, path: str, lines: int) -> None:
        """Log the first `lines` lines of a metrics file: what a run did before it was interrupted."""
        with open(path, encoding="utf-8") as file:
            for _, line in zip(range(lines), file, strict=False):
                self.log(json.loads(line))

    def figure(self, name: str, path: str, step: int) -> None:
        """Show a PNG file."""
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
        """Log an artifact of this run, or one that it `used`; the same content is the same version in either case.

        Args:
            name: of the artifact.
            type: such as model.
            files: paths by their names in the artifact; W&B uploads them.
            metadata: shown beside it.
            references: addresses by their names in the artifact; W&B notes them only. (Of a `file:` it would read and
                sum every file.)
            table: kept as a table of names and values, if there are any.
            used: whether the run took it in rather than made it.
        """
        import wandb

        made = wandb.Artifact(name, type=type, metadata=metadata)
        for inside, path in files.items():
            made.add_file(path, name=inside)
        for inside, address in references.items():
            made.add_reference(address, name=inside)
        if table:
            made.add(wandb.Table(columns=["score", "value"], data=[list(row) for row in table.items()]), "scores")
        if used:
            # run.use_artifact refuses to work offline; this is what it does online with an artifact that is not
            # uploaded yet, and the upload then draws the line from the artifact to the run.
            self._run._log_artifact(made, is_user_created=True, use_after_commit=True)
        else:
            self._run.log_artifact(made)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Log the final scores, end the run and W&B's own process, and see that all rows are on disk."""
        import wandb

        offline, folder = self._run.offline, Path(self._run.dir).parent
        self._run.summary.update(summary)
        self._run.finish(exit_code=exit_code)
        self._run = None
        wandb.teardown()
        for path in folder.glob("run-*.wandb"):  # one, or none if WANDB_MODE is disabled
            written = read_run(path)
            if written["rows"] < self._rows or written["exit_code"] is None:
                self.problems.append(f"{written['rows']} of {self._rows} rows are in {path}; is the disk full?")
            elif not offline:
                path.with_name(path.name + ".synced").touch()


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the W&B runs that a record holds, the oldest first."""
    found = [path for path in folder.glob("wandb/*run-*") if RUN_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name.partition("run-")[2])


def run_id(folder: Path) -> str:
    """Return the id of the run in a folder of `run_folders`."""
    return folder.name.rpartition("-")[2]


def read_run(path: Path) -> dict[str, Any]:
    """Return what the file `run-<id>.wandb` holds: the number of its rows, and its exit code, None if it has no end."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    rows, exit_code = 0, None
    try:
        store.open_for_scan(str(path))
        while data := store.scan_data():
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            rows += kind == "history"
            exit_code = record.exit.exit_code if kind == "exit" else exit_code
    except AssertionError:  # it is empty, or its end was cut off
        pass
    return {"rows": rows, "exit_code": exit_code}


def obstacle(address: str) -> str:
    """Return why no server answers at `address`, or the empty string; without one wandb.init waits for ever."""
    import requests

    try:
        requests.head(address, timeout=INIT_SECONDS)
    except requests.RequestException as error:
        return _named(error)
    return ""


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")


def main() -> None:
    """Serve until `finish`, or until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the run, which says when this is to end
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    mirror = Mirror()
    exit_code = 1
    for line in sys.stdin:
        call = json.loads(line)
        name = call.pop("call")
        try:
            getattr(mirror, name)(**call)
        except Exception as error:
            mirror.problems.append(_named(error))
            if name in STOPPING:
                break
        if name == "finish":
            exit_code = 0
            break
    else:
        mirror.finish({}, exit_code=CRASHED)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(json.dumps({"problems": mirror.problems, "cpu_seconds": round(seconds, 2)}), file=answers, flush=True)
    os._exit(exit_code)  # W&B's hooks at exit can wait for a process that is gone


if __name__ == "__main__":
    main()
