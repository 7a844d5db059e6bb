"""Criteria for fairseq that replace the likelihood of the words: a frozen surrogate, and bags of n-grams.

fairseq builds a criterion by name: `fairseq-train ... --user-dir tasks/nmt/plugin --criterion reloss_nat --surrogate
FOLDER`. So each class here adapts a loss to fairseq's interface, and `arguments.py` chooses the name for a run. No
optimiser and no checkpoint contains the surrogate's parameters. `--nll-weight` adds the label-smoothed likelihood.

The idea of the bag of n-grams: the likelihood punishes a right word in the wrong place, although BLEU only counts which
n-grams a translation shares with the reference. A non-autoregressive model predicts its words independently, so the
expected number of each n-gram is a sum of products of probabilities. The distance of these expected counts from the
reference's counts is a differentiable loss that ignores where the n-grams stand.
"""

from dataclasses import dataclass, field  # fairseq reads the fields' types: annotations must not be postponed
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.criterions.nat_loss import (
    LabelSmoothedDualImitationCriterion,
    LabelSmoothedDualImitationCriterionConfig,
)
from torch import Tensor
from torch.nn import functional as F

from reloss.runtime.errors import UsageError
from reloss.surrogates import SurrogateLoss, TranslationReLoss, load
from reloss.surrogates.expected.translation import ExpectedTranslation, gold_matrix
from reloss.surrogates.uncertainty import UncertaintyWeights
from reloss_tasks.nmt.watched_tasks import mark_symbols

WORDS = "word_ins-loss"  # fairseq's name for the loss of the words; the other one is the loss of the length
SURROGATE = {"help": "folder of a surrogate, or a name such as released/nat"}
NLL_WEIGHT = {
    "help": "weight of the label-smoothed negative log-likelihood that is added; learned: both weights are learned in "
    "training and stored in checkpoints"
}


@dataclass
class BagOfNgramsConfig(LabelSmoothedDualImitationCriterionConfig):
    """Arguments of `bon_nat`."""

    nll_weight: str = field(default="0", metadata=NLL_WEIGHT)
    bon_order: int = field(default=2, metadata={"help": "length of the n-grams in words"})


@dataclass
class SurrogateNATConfig(LabelSmoothedDualImitationCriterionConfig):
    """Arguments of `reloss_nat`, `approx_nat` and `expected_nat`."""

    surrogate: str = field(default="", metadata=SURROGATE)
    nll_weight: str = field(default="0", metadata=NLL_WEIGHT)


@dataclass
class SurrogateATConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Arguments of `reloss_at` and `approx_at`."""

    surrogate: str = field(default="", metadata=SURROGATE)
    nll_weight: str = field(default="0", metadata=NLL_WEIGHT)


class _WithLikelihood(torch.nn.Module):
    """What the criteria share: a loss plus the likelihood, with a fixed weight or learned weights.

    Learned weights are parameters of the criterion, so that fairseq stores them in its checkpoints.
    """

    nll_weight: float
    uncertainty: UncertaintyWeights | None

    def _set_weight(self, nll_weight: str | float, surrogate: SurrogateLoss | None = None) -> None:
        """Set the weight, from the option; without a surrogate, the loss cannot be below 0."""
        if nll_weight == "learned":
            self.nll_weight = 1.0
            self.uncertainty = UncertaintyWeights() if surrogate is None else UncertaintyWeights.of(surrogate)
        else:
            self.nll_weight, self.uncertainty = _checked(nll_weight), None

    def _add(self, loss: Tensor, nll: Tensor, size: int = 1) -> Tensor:
        """Return the weighted sum of two losses, which are themselves sums over `size` tokens.

        The likelihood can be infinite, so a weight of 0 leaves it out of the computation.
        """
        if self.uncertainty is not None:
            return size * self.uncertainty(loss / size, nll / size)
        return loss + self.nll_weight * nll if self.nll_weight else loss

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load learned weights. The checkpoint of a criterion without any, which is fine-tuned, holds None."""
        return super().load_state_dict(state_dict or self.state_dict(), strict, assign)


class _NATCriterion(_WithLikelihood, LabelSmoothedDualImitationCriterion):
    """fairseq's `nat_loss` with another loss for the words. The length loss is unchanged."""

    def word_loss(self, log_probs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch: log-probabilities [B, T, V], targets [B, T], and mask [B, T], true for tokens."""
        raise NotImplementedError

    def _compute_loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        masks: Tensor | None = None,
        label_smoothing: float = 0.0,
        name: str = "loss",
        factor: float = 1.0,
    ) -> dict[str, Any]:
        if name == WORDS and targets.dim() == 3:
            raise UsageError("only --criterion nat_loss takes soft targets; the other criteria compare words")
        losses: dict[str, Any] = super()._compute_loss(outputs, targets, masks, label_smoothing, name, factor)
        if name == WORDS:
            assert masks is not None
            with torch.autocast(outputs.device.type, enabled=False):
                loss = factor * self.word_loss(F.log_softmax(outputs.float(), -1), targets, masks)
            losses["loss"] = self._add(loss, losses["loss"])
        return losses


@register_criterion("reloss_nat", dataclass=SurrogateNATConfig)
class ReLossNAT(_NATCriterion):
    """A frozen surrogate for translations as the loss for the words of a non-autoregressive model.

    The surrogate gets a batch as the bank records it, except that it needs no predicted tokens.
    """

    def __init__(self, task: Any, label_smoothing: float, surrogate: str, nll_weight: str | float) -> None:
        super().__init__(task, label_smoothing)
        self._surrogate = _load(surrogate)
        self._set_weight(nll_weight, self._surrogate[0])
        self._dictionary = task.target_dictionary

    def word_loss(self, log_probs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Return the surrogate's loss."""
        tokens = mark_symbols(torch.stack((targets, targets), -1), mask, self._dictionary)
        return self._surrogate[0].to(log_probs.device)(gold_matrix(log_probs, targets), tokens)


@register_criterion("approx_nat", dataclass=SurrogateNATConfig)
class ApproxNAT(ReLossNAT):
    """The same computation, with a surrogate that was fitted to the metric's values."""


@register_criterion("expected_nat", dataclass=SurrogateNATConfig)
class ExpectedNAT(ReLossNAT):
    """The same computation, with a surrogate that is the expected metric and was not fitted."""


@register_criterion("bon_nat", dataclass=BagOfNgramsConfig)
class BagOfNgramsNAT(_NATCriterion):
    """The distance of bags of n-grams, BoN-L1 (Shao et al., 2020), as the loss for the words."""

    def __init__(self, task: Any, label_smoothing: float, nll_weight: str | float, bon_order: int) -> None:
        super().__init__(task, label_smoothing)
        self._set_weight(nll_weight)
        if bon_order < 1:
            raise UsageError(f"--bon-order must be 1 or more, not {bon_order}")
        self.order = bon_order

    def word_loss(self, log_probs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Return the mean distance of the sentences."""
        return bag_of_ngrams_l1(log_probs, targets, mask, self.order)


@register_criterion("reloss_at", dataclass=SurrogateATConfig)
class ReLossAT(_WithLikelihood, LabelSmoothedCrossEntropyCriterion):
    """A frozen `reloss.TranslationReLoss` as the loss of an autoregressive model, given gold prefixes.

    fairseq's losses are sums over tokens, so the surrogate's mean is multiplied by the number of tokens.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        surrogate: str,
        nll_weight: str | float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self._surrogate = _load(surrogate)
        if not isinstance(self._surrogate[0], TranslationReLoss):
            raise UsageError(
                f"{surrogate} counts n-grams in all places, but an autoregressive model has seen the reference before "
                "each position: use a surrogate with surrogate.features=likelihood"
            )
        self._set_weight(nll_weight, self._surrogate[0])

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the negative log-likelihood, summed over the tokens after the ignored prefix."""
        ordinary, nll = super().compute_loss(model, net_output, sample, reduce)
        log_probs = model.get_normalized_probs(net_output, log_probs=True)[:, self.ignore_prefix_size :]
        targets = model.get_targets(sample, net_output)[:, self.ignore_prefix_size :]
        loss = self._surrogate[0].to(log_probs.device)(log_probs, targets, targets != self.padding_idx)
        size = targets.size(0) if self.sentence_avg else sample["ntokens"]
        return self._add(loss * size, ordinary, size), nll


@register_criterion("approx_at", dataclass=SurrogateATConfig)
class ApproxAT(ReLossAT):
    """The same computation, with a surrogate that was fitted to the metric's values."""


def _load(surrogate: str) -> tuple[SurrogateLoss]:
    """Return the frozen surrogate in a tuple, so that PyTorch does not register its parameters.

    Raises:
        UsageError: none is named, or it is not for translations.
    """
    if not surrogate:
        raise UsageError(
            "--surrogate is missing: a folder that `reloss learn` or `reloss run` wrote, or a name such as released/nat"
        )
    loaded = load(surrogate)
    if not isinstance(loaded, TranslationReLoss | ExpectedTranslation):
        raise UsageError(f"{surrogate} is a {type(loaded).__name__}; translation needs a surrogate of kind translation")
    return (loaded,)


def _checked(nll_weight: str | float) -> float:
    try:
        weight = float(nll_weight)
    except ValueError:
        weight = -1.0
    if not weight >= 0:
        raise UsageError(f"--nll-weight must be 0 or more, not {nll_weight}; or the word learned")
    return weight


def bag_of_ngrams_l1(log_probs: Tensor, targets: Tensor, mask: Tensor, order: int = 2) -> Tensor:
    """Return the L1 distance between the expected bag of n-grams and the reference's, scaled to [0, 1].

    With independent tokens, the expected count of an n-gram g is sum_t prod_i p(t + i, g_i). Both bags hold the same
    number of n-grams, so their distance is 2 (number - sum over n-grams of the smaller count), and only n-grams of the
    reference have a smaller count above 0. The result is the distance divided by twice the number.

    Source: Shao et al. (2020), Minimizing the Bag-of-Ngrams Difference for Non-Autoregressive Neural Machine
    Translation.

    Args:
        log_probs: [B, T, V].
        targets: [B, T] reference tokens; the reference is as long as the translation.
        mask: [B, T], true for real tokens, which precede the padding.
        order: n, the length of the n-grams.

    Returns:
        A scalar, the mean over the sentences with at least one n-gram; 0, with zero gradient, if there is none.
    """
    starts = targets.shape[1] - order + 1
    if starts < 1:
        return log_probs.sum() * 0
    grams = targets.unfold(1, order, 1)  # [B, J, n]
    real = mask.unfold(1, order, 1).all(-1)  # [B, J]
    expected: Tensor | float = 1.0
    probs = gold_matrix(log_probs, targets).exp()  # [B, T, T]
    for place in range(order):
        expected = expected * probs[:, place : place + starts, place : place + starts]  # [B, starts, J]
    expected = (expected * real[..., None]).sum(1)
    equal = (grams[:, :, None] == grams[:, None]).all(-1) & real[:, None]
    count = equal.sum(-1).clamp(min=1)  # of each n-gram in the reference; `grams` lists it that often
    matched = (torch.minimum(expected, count) / count * real).sum(-1)
    number = real.sum(-1)
    distance = 1 - matched / number.clamp(min=1)
    return (distance * (number > 0)).sum() / (number > 0).sum().clamp(min=1)
