"""`reloss learn`: fit a surrogate on a bank, outside any task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reloss.experiment.config import SurrogateSection
from reloss.experiment.seeds import seed_everything
from reloss.experiment.settings import override
from reloss.learning import LearnOptions, PredictionBank
from reloss.metrics import METRICS, get_metric
from reloss.pipeline import fitting
from reloss.runtime import distributed
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_object
from reloss.runtime.progress import say
from reloss.surrogates import SurrogateLoss, build, find_kind, load
from reloss.surrogates.storage import CARD_FILE, WEIGHTS_FILE, is_saved


def learn(
    bank_folder: Path, metric: str, out: Path, kind: str, higher_is_better: bool, settings: Sequence[str]
) -> dict[str, Any]:
    """Fit a surrogate and leave it in the folder `out`, unless it is there; return the figures of the fit.

    Args:
        bank_folder: folder of a prediction bank.
        metric: name of the metric, or `module:function`.
        out: folder for the surrogate.
        kind: kind of surrogate.
        higher_is_better: whether a larger value of the metric is a better prediction.
        settings: `key=value` options of the network and of the fit.

    Raises:
        UsageError: an unknown metric, kind or option, or `out` holds a surrogate of another fit.
        RelossError: the bank is missing, damaged, or of predictions that this kind does not take; or the surrogate in
            `out` is damaged.
    """
    get_metric(metric)
    find_kind(kind)
    if not higher_is_better and metric in METRICS:
        raise UsageError(f"a higher {metric} is better; drop --lower-is-better")
    section, options = parse_settings(settings)
    bank = PredictionBank.open(bank_folder)
    try:
        surrogate = build(kind, bank.output_shape(), **section.build_options())
    except ValueError as error:
        raise RelossError(f"--kind {kind} does not fit the bank {bank_folder}: {error}") from error
    if (out / CARD_FILE).exists():
        facts = {"metric": metric, "higher_is_better": higher_is_better, **fitting.metric_code(metric)}
        fit = _recorded_fit(out, surrogate, bank, options, facts)
        if is_saved(out):
            say(f"already finished: {out}")
            return fit
        say(f"{out} has lost its {WEIGHTS_FILE}; fitting again")
    distributed.start()
    seed_everything(options.seed)
    surrogate = build(kind, bank.output_shape(), **section.build_options())
    return fitting.learn(surrogate, bank, metric, options, out, higher_is_better)


def parse_settings(settings: Sequence[str]) -> tuple[SurrogateSection, LearnOptions]:
    """Return the options of the network and those of the fit; both are named without their section, as `steps=200`."""
    keys = SurrogateSection.model_fields.keys()
    network = [setting for setting in settings if setting.partition("=")[0] in keys]
    options = override(LearnOptions(), [setting for setting in settings if setting not in network])
    try:
        return override(SurrogateSection(), network).with_fidelity(options.fidelity), options
    except ValueError as error:
        raise UsageError(f"--set: {error}") from error


CARD = {"class": str, "options": dict, "learn": dict, "bank": str, "metric": str, "fit": dict}
"""The keys of a card that a fit writes, with their types."""

NAMES = {"class": "kind", "learn": "options of the fit", "metric_code": "code of the metric, or version of Python"}
"""The keys of a card that have another name in messages."""


def _recorded_fit(
    out: Path, surrogate: SurrogateLoss, bank: PredictionBank, options: LearnOptions, facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures of the fit in `out`.

    Raises:
        UsageError: it is another fit.
        RelossError: its card or its weights are damaged.
    """
    card = read_object(out / CARD_FILE, CARD)
    expected = {"class": type(surrogate).__name__, "learn": options.model_dump(mode="json")}
    expected |= {"bank": bank.fingerprint(), **facts}
    different = [NAMES.get(name, name) for name in expected if card.get(name, facts.get(name)) != expected[name]]
    network = {name: value for name, value in surrogate.options().items() if name != "scale"}
    if not different and not network.items() <= card["options"].items():
        different = ["options of the network"]
    if different:
        raise UsageError(
            f"{out} already holds a surrogate of another fit; choose another --out (different: {', '.join(different)})"
        )
    if is_saved(out):
        try:
            load(out)
        except RelossError as error:
            raise RelossError(f"{error}; remove {out} to fit the surrogate again") from error
    fit: dict[str, Any] = card["fit"]
    return fit
