"""The choices that shape a surrogate, and what each fidelity chooses by default. Imports no torch."""

from typing import Literal, TypedDict

Fidelity = Literal["released", "corrected"]
"""`released`: exactly the authors' computation. `corrected`: the same with its known flaws fixed."""

Input = Literal["probability", "log_probability"]
"""How probabilities enter the network. A probability passes no gradient where it is 0 or 1; its logarithm does."""

Output = Literal["absolute", "identity", "monotone"]
"""`absolute`: absolute value of the network's output, which can fold the learned curve. `identity`: the output as it
is. `monotone`: a network that can only fall as a prediction gets better, by construction."""

Structure = Literal["points", "span"]
"""Features of a reader: `points`, the likelihood of the gold start and end; `span`, the expected overlap as well."""


class Preset(TypedDict):
    """The input and the output that a fidelity chooses."""

    input: Input
    output: Output


PRESETS: dict[Fidelity, Preset] = {
    "released": {"input": "probability", "output": "absolute"},
    "corrected": {"input": "log_probability", "output": "monotone"},
}
