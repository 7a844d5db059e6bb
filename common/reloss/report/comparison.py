"""Two variants of one experiment compared run by run, as `reloss compare` prints them.

A variant is a loss with its settings. It is written EXPERIMENT:LOSS[@SETTINGS], with the name of its folder of runs,
such as classification/digits_cnn:reloss@train.init=baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord
from reloss.experiment.run_spec import variant_name
from reloss.experiment.task import find_experiment
from reloss.report.groups import Key, group_runs, scores_by_seed
from reloss.report.statistics import Difference, Sample, Side, describe, paired_difference
from reloss.runtime.errors import UsageError, unknown

SENTENCES = {
    Side.ABOVE: "A scores higher than B: the 95 % interval lies above 0.",
    Side.BELOW: "A scores lower than B: the 95 % interval lies below 0.",
    Side.AROUND: "A and B are too close to tell: the 95 % interval contains 0.",
    Side.SINGLE: "One common seed tells nothing about the noise: run more seeds.",
}
"""What an interval tells."""


@dataclass(frozen=True)
class Pair:
    """Scores of two variants, A and B, in percent.

    Attributes:
        experiment: name of the experiment.
        score: name of the score.
        names: both variants.
        samples: mean and deviation of each, over its own seeds.
        difference: A minus B, paired by seed.
        wins: number of common seeds on which A scores higher.
        losses: number of common seeds on which B scores higher.
        same_protocol: whether both were run with the same data, model and recipe.
    """

    experiment: str
    score: str
    names: tuple[str, str]
    samples: tuple[Sample, Sample]
    difference: Difference
    wins: int
    losses: int
    same_protocol: bool

    def text(self) -> str:
        """Return the comparison in a few lines; the last one is a sentence."""
        lines = [f"{self.experiment}: {self.score}, %"]
        for letter, name, sample in zip("AB", self.names, self.samples, strict=True):
            lines.append(f"  {letter}  {sample}  n={sample.n}  {name}")
        ties = self.difference.n - self.wins - self.losses
        lines.append(f"A minus B: {self.difference}, paired over n={self.difference.n}")
        lines.append(f"A wins {self.wins}, B wins {self.losses}, ties {ties}")
        return "\n".join([*lines, self.sentence()])

    def sentence(self) -> str:
        """Return what the interval tells."""
        caution = "" if self.same_protocol else " Data, model or recipe differ too, so it is not the loss alone."
        return SENTENCES[self.difference.side] + caution

    def data(self) -> dict[str, Any]:
        """Return one number per name, for JSON."""
        values: dict[str, Any] = {"experiment": self.experiment, "score": self.score}
        for letter, name, sample in zip("ab", self.names, self.samples, strict=True):
            values |= {
                letter: name,
                f"{letter}_mean": sample.mean,
                f"{letter}_std": sample.std,
                f"{letter}_n": sample.n,
            }
        difference = self.difference
        values |= {"difference": difference.mean, "low": difference.low, "high": difference.high}
        values |= {"pairs": difference.n, "wins": self.wins, "losses": self.losses}
        return values | {"same_protocol": self.same_protocol, "verdict": self.sentence()}


def variant_label(loss: str, settings: Sequence[str]) -> str:
    """Return the name of a variant: the loss alone, or `loss@settings`."""
    return f"{loss}@{variant_name(settings)}" if settings else loss


def experiment_of(name: str) -> str:
    """Return the experiment of a variant that is written EXPERIMENT:LOSS[@SETTINGS].

    Raises:
        UsageError: the text has another form, or there is no such experiment.
    """
    experiment, colon, variant = name.partition(":")
    if not colon or not variant:
        example = experiment if "/" in experiment else "classification/digits_cnn"
        raise UsageError(f"a variant is written EXPERIMENT:LOSS[@SETTINGS], such as {example}:reloss, not '{name}'")
    return find_experiment(experiment)[1].name


def compare(first: str, second: str, runs: Sequence[RunRecord]) -> Pair:
    """Return the comparison of two variants, each written EXPERIMENT:LOSS[@SETTINGS] or a beginning that is unique.

    Raises:
        UsageError: the experiments differ, a variant was not run, or the variants have no finished seed in common.
    """
    experiment = experiment_of(first)
    if experiment_of(second) != experiment:
        raise UsageError(
            f"{first} and {second} belong to different experiments; only runs of one can be paired by seed"
        )
    config = find_experiment(experiment)[1]
    groups = group_runs(config, (run for run in runs if run.experiment == experiment))
    chosen = [_find(name.partition(":")[2], config, groups) for name in (first, second)]
    scores = [scores_by_seed(group, config.score) for _, group in chosen]
    difference = paired_difference(*scores)
    if difference is None:
        seeds = " and ".join(", ".join(map(str, sorted(values))) or "none" for values in scores)
        raise UsageError(f"no finished seed in common (seeds {seeds}): run both with the same seeds")
    pairs = [(scores[0][seed], scores[1][seed]) for seed in scores[0].keys() & scores[1].keys()]
    return Pair(
        experiment=experiment,
        score=config.score,
        names=(chosen[0][0], chosen[1][0]),
        samples=(describe(list(scores[0].values())), describe(list(scores[1].values()))),
        difference=difference,
        wins=sum(ours > theirs for ours, theirs in pairs),
        losses=sum(ours < theirs for ours, theirs in pairs),
        same_protocol=chosen[0][1][0].protocol == chosen[1][1][0].protocol,
    )


def _find(name: str, config: Experiment, groups: Mapping[Key, Sequence[RunRecord]]) -> tuple[str, Sequence[RunRecord]]:
    """Return the variant called `name`, or the only one that begins so, and its runs."""
    variants = {variant_label(group[0].loss, group[0].settings): group for group in groups.values()}
    matches = [name] if name in variants else [variant for variant in variants if variant.startswith(name)]
    if len(matches) != 1:
        raise unknown(f"variant of {config.name}", name, matches or variants)
    return matches[0], variants[matches[0]]
