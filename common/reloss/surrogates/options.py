"""The choices that shape a surrogate, and what they choose for each other by default. Imports no torch."""

from typing import Literal, TypedDict

Fidelity = Literal["released", "corrected"]
"""`released`: exactly the authors' computation. `corrected`: the same with its known flaws fixed."""

Features = Literal["likelihood", "expected", "released"]
"""What a surrogate sees of a prediction. `likelihood`: the probabilities of the targets, as the ordinary loss does.
`expected`: the expected parts of the metric, such as matching n-grams or true positives. `released`: the authors'."""

Penalty = Literal["item", "example", "one_sided", "off"]
"""Gradient penalties; see `reloss.learning.objective`."""

Input = Literal["probability", "log_probability"]
"""How probabilities enter the network. A probability passes no gradient where it is 0 or 1; its logarithm does."""

Output = Literal["absolute", "identity", "monotone"]
"""`absolute`: absolute value of the network's output, which can fold the learned curve. `identity`: the output as it
is. `monotone`: a network that can only fall as a prediction gets better, by construction."""

Structure = Literal["points", "span"]
"""Features of a reader: `points`, the likelihood of the gold start and end; `span`, the expected overlap as well."""


class Preset(TypedDict):
    """The input and the output that a choice of features implies."""

    input: Input
    output: Output


PRESETS: dict[Features, Preset] = {
    "released": {"input": "probability", "output": "absolute"},
    "likelihood": {"input": "log_probability", "output": "monotone"},
    "expected": {"input": "log_probability", "output": "monotone"},
}

FEATURES: dict[Fidelity, Features] = {"released": "released", "corrected": "likelihood"}
"""The features that a fidelity chooses."""

KINDS_BY_METRIC: dict[str, dict[str, str]] = {
    "set": dict.fromkeys(("partial_auroc", "precision_at_10", "recall_at_10"), "top"),
    "pose": {"heatmap_ap": "pose_ranking"},
}
"""Kinds of surrogates that see more than the usual one, for the metrics that need it."""


def kind_for(kind: str, metric: str | None) -> str:
    """Return the kind of surrogate for a metric, given the usual kind for the predictions."""
    return KINDS_BY_METRIC.get(kind, {}).get(metric or "", kind)
