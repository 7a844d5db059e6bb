"""Expected n-gram matches of translations: what BLEU counts, in expectation under a non-autoregressive model.

BLEU counts the n-grams that a translation shares with its reference, wherever they stand. A non-autoregressive model
predicts the tokens of all positions independently, so the probability that an n-gram of the reference starts at a
position is a product of n probabilities, and its expected count is the sum of these products over all positions. All
of them are read from one small matrix: the log-probability that each position gives to each token of the reference.

An autoregressive model is trained with the reference before each position, so its probabilities are none of outputs and
these features mean nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from reloss.metrics.shapes import check_shapes
from reloss.surrogates.checks import check_classes, check_token_matrices
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.translation import LOWEST_LOG_P, NO_TOKEN, TranslationReLoss

ORDERS = 4  # BLEU counts n-grams of 1 to 4 tokens
SMALLEST_PRECISION = 1e-9  # below it, the logarithm of a precision is constant and passes no gradient
NEGLIGIBLE_LOG_P = -20.0  # lower ones count as this in products, which then stay above the smallest float32


def gold_matrix(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability that each position gives to each gold token.

    Args:
        log_probs: [..., T, V] log-probabilities of all tokens.
        targets: [..., T] gold tokens, from 0 to V - 1.

    Returns:
        [..., T, T]: row t holds what position t gives to the gold tokens of all positions.

    Raises:
        ValueError: on a CPU, a target is not a token from 0 to V - 1; see `reloss.surrogates.checks.gather_targets`.
    """
    places = targets.long()[..., None, :].expand(*targets.shape, targets.shape[-1])
    try:
        return log_probs.gather(-1, places)
    except (IndexError, RuntimeError):
        check_classes(targets, log_probs.shape[-1])
        raise


def expected_counts(probs: Tensor, orders: int = ORDERS) -> list[Tensor]:
    """Return how often each n-gram of the reference is expected in the output, for n = 1 to `orders`.

    The n-gram that starts at place j of the reference stands at position t of the output with probability
    prod_i p[t + i, j + i]: a product along a diagonal of the matrix. So the products of order n are those of order
    n - 1, times the matrix shifted along its diagonal.

    Args:
        probs: [..., T, T] probability that position t gives to the gold token of place j; 0 where either is no word.
        orders: length of the longest n-grams.

    Returns:
        For each n, [..., T - n + 1], one count for each place where an n-gram can start; 0 for n-grams that contain a
        place without a word. The list ends at order T.
    """
    products, counts = probs, [probs.sum(-2)]
    for n in range(2, min(orders, probs.shape[-1]) + 1):
        products = products[..., :-1, :-1] * probs[..., n - 1 :, n - 1 :]
        counts.append(products.sum(-2))
    return counts


def reference_counts(tokens: Tensor, orders: int = ORDERS) -> list[Tensor]:
    """Return how often each n-gram of the reference occurs in the reference, for n = 1 to `orders`.

    Args:
        tokens: [..., T] gold tokens; negative where there is no word.
        orders: length of the longest n-grams.

    Returns:
        For each n, [..., T - n + 1] whole numbers: at least 1 for each place where an n-gram of words starts, else 0.
        The list ends at order T.
    """
    words = tokens >= 0
    equal = (tokens[..., :, None] == tokens[..., None, :]) & words[..., None]
    same, counts = equal, [equal.sum(-1)]
    for n in range(2, min(orders, tokens.shape[-1]) + 1):
        same = same[..., :-1, :-1] & equal[..., n - 1 :, n - 1 :]
        counts.append(same.sum(-1))
    return counts


def expected_matches(outputs: Tensor, targets: Tensor, orders: int = ORDERS) -> tuple[Tensor, Tensor]:
    """Return the expected clipped n-gram matches of each sentence, and its number of n-grams.

    The expected count of an n-gram is clipped by its count in the reference. This bounds the expected clipped count
    from above; both are equal where the model is certain.

    Args:
        outputs: [..., T, T] log-probability that each position gives to each gold token; -inf is allowed.
        targets: [..., T, 2] gold and most probable tokens. The gold one is NO_TOKEN (-1) where there is none, which is
            also no position of the output, and negative for special symbols, which are no words.
        orders: length of the longest n-grams.

    Returns:
        Matches and numbers, both [..., orders] in the dtype of the outputs; 0 for orders above T.
    """
    gold = targets[..., 0].long()
    real, words = gold != NO_TOKEN, gold >= 0
    probs = outputs.clamp(min=NEGLIGIBLE_LOG_P).exp() * (real[..., :, None] & words[..., None, :])
    matches, numbers = [], []
    for expected, count in zip(expected_counts(probs, orders), reference_counts(gold, orders), strict=True):
        occurs = count > 0
        # An n-gram that occurs c times in the reference stands at c places, so each place counts 1/c of its matches.
        matches.append((torch.minimum(expected, count) / count.clamp(min=1)).where(occurs, 0).sum(-1))
        numbers.append(occurs.sum(-1).to(expected.dtype))
    missing = [torch.zeros_like(matches[0])] * (orders - len(matches))
    return torch.stack(matches + missing, -1), torch.stack(numbers + missing, -1)


def log_expected_precisions(matches: Tensor, numbers: Tensor) -> Tensor:
    """Return the logarithm of the expected precisions of each item, pooled over its sentences as corpus BLEU does.

    Args:
        matches: [N, B, orders] expected clipped matches of each sentence.
        numbers: [N, B, orders] its number of n-grams.

    Returns:
        [N, orders], from the logarithm of SMALLEST_PRECISION to 0; the lowest value, without gradient, for an order
        without n-grams.
    """
    precisions = matches.sum(1) / numbers.sum(1).clamp(min=1)
    return precisions.clamp(min=SMALLEST_PRECISION).log()


def mean_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean log-probability of the gold tokens of each item.

    Args:
        outputs: [N, B, T, T]; each position counts with its own gold token, and -inf as LOWEST_LOG_P.
        targets: [N, B, T, 2]; special symbols count too.

    Returns:
        [N], at most 0; 0 for an item without tokens.
    """
    real = targets[..., 0].long() != NO_TOKEN
    gold = outputs.diagonal(dim1=-2, dim2=-1).clamp(min=LOWEST_LOG_P).where(real, 0)
    return gold.sum((1, 2)) / real.sum((1, 2)).clamp(min=1)


def expected_bleu(features: Tensor) -> Tensor:
    """Return the expected BLEU of features [..., 5]: the geometric mean of the expected precisions, in [0, 1].

    A non-autoregressive model is trained on outputs as long as their references, so there is no brevity penalty.
    """
    return features[..., :ORDERS].mean(-1).exp()


class ExpectedTranslation(ExpectedLoss):
    """The surrogate for BLEU of a non-autoregressive model, over expected n-gram precisions and the likelihood.

    Takes log-probabilities [B, T, V] and gold tokens [B, T]; or, as in a bank, what each position gives to each gold
    token [B, T, T] and targets [B, T, 2]. The batch is one group, as corpus BLEU counts it.

    Loss and gradient are finite for log-probabilities down to -inf, and for a batch without tokens; its gradient is 0.
    With `metric="token_bleu"`, a batch without a sentence of four words has BLEU 0, as in the metric. The arguments are
    those of `ExpectedLoss`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (*(f"log_precision_{n}" for n in range(1, ORDERS + 1)), "mean_log_p")

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {"token_bleu": expected_bleu}

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return no arguments: the shape [T, T] of one sentence's outputs decides nothing.

        Raises:
            ValueError: the outputs are no such matrices.
        """
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(
                "expected what each position gives to each of a sentence's gold tokens, log-probabilities [T, T], not "
                f"{list(shape)}; an autoregressive model has no such outputs: choose surrogate.features=likelihood"
            )
        return {}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each item.

        Args:
            outputs: [N, B, T, T] log-probability that each position (row) gives to each gold token (column).
            targets: [N, B, T, 2] gold and most probable tokens. The gold one is NO_TOKEN (-1) where there is none, and
                another negative number for special symbols: they count in the likelihood but are no words for BLEU.

        Returns:
            [N, 1, 5], in the order of `FEATURES`.

        Raises:
            ValueError: the shapes do not agree.
        """
        check_token_matrices(outputs, targets)
        precisions = log_expected_precisions(*expected_matches(outputs, targets))
        return torch.cat((precisions, mean_log_likelihood(outputs, targets)[:, None]), -1)[:, None]

    def forward(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar, in the dtype of the parameters, also under autocast.

        Args:
            outputs: [B, T, V] log-probabilities of all tokens; or, as in a bank, [B, T, T].
            targets: [B, T] gold tokens, all of them words; or, as in a bank, [B, T, 2].
            mask: [B, T], true for real tokens; by default, the tokens that are not negative.

        Raises:
            UsageError: a model is being trained with this surrogate, which has not been fitted.
            ValueError: the shapes do not agree.
        """
        if mask is None and targets.dim() == 3:
            return super().forward(outputs, targets)
        mask = targets >= 0 if mask is None else mask
        check_shapes({"outputs [B, T, V]": outputs, "targets [B, T]": targets, "mask [B, T]": mask})
        tokens = targets.where(mask, NO_TOKEN)
        return super().forward(gold_matrix(outputs, targets.clamp(min=0)), torch.stack((tokens, tokens), -1))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless the shapes are those of `features`."""
        check_token_matrices(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the tokens of each item: [N]; shapes as in `features`."""
        return TranslationReLoss.ordinary_loss(outputs, targets)

    @staticmethod
    def gold(targets: Tensor) -> Tensor:
        """Return the gold tokens [..., T] of targets [..., T, 2]: the most probable ones belong to the predictions."""
        return TranslationReLoss.gold(targets)
