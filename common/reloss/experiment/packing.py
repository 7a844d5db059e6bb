"""Packing: the small files of many runs and surrogates become a few files of JSON lines that can be committed.

The runs of a sweep differ in their numbers and share almost everything else. So a run takes one line, and the parts
that repeat, configs and environments, are written once under their hashes. `reloss.experiment.record_parts` lists the
files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from reloss.experiment.record_parts import SHARED, SURROGATES, Source, name_order, packed_runs, packed_surrogates
from reloss.experiment.records import RunRecord, SurrogateRecord, checkpoint_rankings, experiment_of
from reloss.runtime.files import read_object, short_hash, write_text

Parts = dict[str, Any]


def run_parts(run: RunRecord) -> Parts:
    """Return the parts of a run to pack.

    Raises:
        RelossError: its config or its metrics are damaged.
    """
    run.config()  # for its check only: the config is packed as it was written, under the keys of its time
    parts = {part: run.source.read(part) for part in ("summary", "environment", "config")}
    return _present({**parts, "metrics": run.metrics()})


def surrogate_parts(surrogate: SurrogateRecord, picture: Any) -> Parts:
    """Return the parts of a surrogate to pack; `picture` is what the report draws of it.

    Raises:
        RelossError: its history or its diagnostics are damaged.
    """
    parts = {"card": surrogate.source.read("card"), "history": surrogate.history(), "picture": picture}
    return _present({**parts, **diagnostics_parts(surrogate.source)})


def diagnostics_parts(source: Source) -> Parts:
    """Return the part `diagnostics` of a surrogate's or of a diagnostics folder, if it has one.

    Raises:
        RelossError: it is damaged.
    """
    return {"diagnostics": source.read("diagnostics")} if checkpoint_rankings(source) else {}


def _present(parts: Parts) -> Parts:
    return {part: value for part, value in parts.items() if value}


def add_to_pack(packed: Path, runs: Mapping[str, Parts], surrogates: Mapping[str, Parts]) -> None:
    """Add records to a packed folder, or replace those with the same names.

    Each file is written atomically. Shared parts are written before the lines that name them, and removed after them,
    so that an interrupted call leaves a folder that can be read, and packed into again.

    Args:
        packed: PACKED of `reloss.experiment.record_parts`; created if missing.
        runs: parts of runs, by name.
        surrogates: parts of surrogates and of diagnostics folders, by name.

    Raises:
        RelossError: the folder holds damaged records, or cannot be written.
    """
    runs = {**{line.name: dict(line.parts) for line in packed_runs(packed)}, **runs}
    surrogates = {**{line.name: dict(line.parts) for line in packed_surrogates(packed)}, **surrogates}
    shared: dict[str, dict[str, Any]] = {part: {} for part in SHARED}
    lines = {name: _share(parts, shared) for name, parts in runs.items()}
    for part, file in SHARED.items():
        _write_shared(packed / file, {**read_object(packed / file), **shared[part]})
    for experiment, names in groupby(sorted(lines, key=name_order), key=experiment_of):
        _write_lines(packed / f"{experiment}.jsonl", names, lines)
    if surrogates:
        _write_lines(packed / SURROGATES, sorted(surrogates, key=name_order), surrogates)
    for part, file in SHARED.items():
        _write_shared(packed / file, shared[part])


def _share(parts: Parts, shared: dict[str, dict[str, Any]]) -> Parts:
    """Return the line of a run: its shared parts are moved into `shared` and replaced by their hashes."""
    environment = dict(parts.get("environment", {}))
    line: Parts = {"summary": parts["summary"]}
    if "command" in environment:  # it names the seed, and would make each environment another one
        line["command"] = environment.pop("command")
    for part, value in (("environment", environment), ("config", parts.get("config"))):
        if value:
            line[part] = short_hash(value)
            shared[part][line[part]] = value
    return {**line, **_present({"metrics": parts.get("metrics")})}


def _write_shared(path: Path, values: Mapping[str, Any]) -> None:
    """Write one object, an entry per line, ordered by hash."""
    entries = (f"{json.dumps(key)}: {json.dumps(values[key], ensure_ascii=False)}" for key in sorted(values))
    write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")


def _write_lines(path: Path, names: Iterable[str], parts: Mapping[str, Parts]) -> None:
    lines = (json.dumps({"name": name, **parts[name]}, ensure_ascii=False) for name in names)
    write_text(path, "".join(line + "\n" for line in lines))
