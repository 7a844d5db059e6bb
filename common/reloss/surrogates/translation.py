"""The surrogate for translations: a learned function of the log-probabilities of a sentence's gold tokens.

The ordinary loss averages these log-probabilities token by token. BLEU counts n-grams: a token is worth more where its
neighbours are right too. So the network sees windows of neighbouring tokens, or, in the release, the whole sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.metrics.shapes import check_shapes
from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.checks import check_choices, check_sizes, check_tokens, gather_targets, widen
from reloss.surrogates.options import Features, Input, Output
from reloss.surrogates.released.translation import (
    PositionEmbedding,
    TransformerLayer,
    loss_layers,
    sizes_of,
    token_layers,
    transform,
)

Positions = Literal["released", "counted"]
Average = Literal["sentence", "token"]

NO_TOKEN = -1  # in recorded targets, where there is no token
LOWEST_LOG_P = -65504.0  # the lowest number of float16; stands for -inf, for which layers are not finite


class TranslationReLoss(SurrogateLoss):
    """ReLoss for translation: a learned function of the log-probabilities that a model gives the gold tokens.

    Takes log-probabilities [B, T, V] and gold tokens [B, T]. Layers and parameter names are the release's, so that its
    weights load; see `reloss.surrogates.released.translation`. The release has output `absolute`, positions `released`
    and average `sentence`; the defaults fix their flaws.

    Args:
        output: `absolute` takes the absolute value of a sentence's loss, which folds a curve that crosses zero.
            `identity` keeps the sign. `monotone` replaces the Transformer by a network of non-negative weights over
            windows of `window` neighbouring tokens, the n-grams that BLEU counts: the loss falls as the probability of
            any gold token rises, by construction.
        positions: `released` gives all real tokens the same position; `counted` gives them their places.
        average: `sentence` is the mean over sentences of their mean token, so a token of a short sentence weighs more.
            `token` is the mean over all tokens of a batch, as corpus BLEU counts.
        width: size of the layers (in the release, the model's embedding size).
        feedforward: size of the hidden layers in the Transformer layers.
        heads: number of attention heads.
        length: the longest sentence, in tokens; tokens beyond it get the last position.
        window: size of the windows of `monotone`, in tokens.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown choice, a size or scale that is not positive, or a width that is not a multiple of heads.
    """

    def __init__(
        self,
        output: Output = "monotone",
        positions: Positions = "counted",
        average: Average = "token",
        width: int = 512,
        feedforward: int = 2048,
        heads: int = 8,
        length: int = 1024,
        window: int = 4,
        scale: float = 1.0,
    ) -> None:
        super().__init__(scale)
        check_choices(output=(output, Output), positions=(positions, Positions), average=(average, Average))
        check_sizes(width=width, feedforward=feedforward, heads=heads, length=length, window=window)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.output: Output = output
        self.positions: Positions = positions
        self.average: Average = average
        self.width, self.feedforward, self.heads, self.length, self.window = width, feedforward, heads, length, window
        monotone = output == "monotone"
        self.logits_layer = token_layers(window if monotone else 1, width)
        if not monotone:
            self.pe = PositionEmbedding(length, width, counted=positions == "counted")
            self.block = nn.ModuleList(TransformerLayer(width, feedforward, heads) for _ in range(2))
        self.loss_layer = loss_layers(width)

    @classmethod
    def arguments(cls, shape: Sequence[int], *, features: Features, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments for log-probabilities [T] or [T, T] of a sentence's gold tokens.

        The features decide on positions and average. The network is small: a bank of a few thousand sentences is too
        small for one of the release's size.

        Raises:
            ValueError: one example's outputs have another shape.
        """
        if len(shape) not in (1, 2) or len(set(shape)) != 1:
            raise ValueError(
                f"expected log-probabilities [T] of a sentence's gold tokens, or [T, T], not {list(shape)}"
            )
        released = features == "released"
        return {
            "output": output,
            "positions": "released" if released else "counted",
            "average": "sentence" if released else "token",
            **{"width": 32, "feedforward": 64, "heads": 4, "length": shape[0]},
        }

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the release's form, and the sizes of these weights; they do not show the number of heads."""
        return {"output": "absolute", "positions": "released", "average": "sentence", **sizes_of(weights)}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each token.

        Args:
            outputs: [N, B, T] log-probabilities of the gold tokens; or [N, B, T, T], those that each position gives to
                each gold token. Only the diagonal is used.
            targets: [N, B, T, 2] gold and most probable tokens; the gold one is NO_TOKEN (-1) where there is none.

        Returns:
            [N, B, T, window] for `monotone`: the log-probabilities of the window that ends at the token; tokens before
            the first one count as certain. Else [N, B, T, 2]: log-probability, and 1 for a real token.

        Raises:
            ValueError: the shapes do not agree.
        """
        check_tokens(outputs, targets)
        real = self.group_weights(outputs, targets)
        gold = own_tokens(outputs).where(real, 0).clamp(min=LOWEST_LOG_P)
        if self.output == "monotone":
            return F.pad(gold, (self.window - 1, 0)).unfold(-1, self.window, 1)
        return torch.stack((gold, real.to(gold.dtype)), -1)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which tokens are real: [N, B, T]."""
        return targets[..., 0].long() != NO_TOKEN  # an unsigned dtype holds no negative number

    def network(self, features: Tensor) -> Tensor:
        """Return the loss of each token: features [N, B, T, F] -> [N, B, T]."""
        if self.output == "monotone":
            return self.perceptron(features)
        losses = transform(self.logits_layer, self.pe, self.block, self.loss_layer, features.flatten(0, 1))
        return losses.view(features.shape[:-1])

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the real tokens, as `average` says, times the scale: [N, B, T] -> [N].

        A sentence without tokens counts as one with loss 0 in the mean over sentences, and not at all in the mean over
        tokens. `absolute` is applied to the mean of a sentence.
        """
        assert group_weights is not None
        losses, counts = losses.where(group_weights, 0), group_weights.sum(-1)
        if self.average == "token" and self.output != "absolute":
            return self.scale * losses.sum((1, 2)) / counts.sum(-1).clamp(min=1)
        sentences = losses.sum(-1) / counts.clamp(min=1)
        sentences = sentences.abs() if self.output == "absolute" else sentences
        if self.average == "sentence":
            return self.scale * sentences.mean(-1)
        return self.scale * (sentences * counts).sum(-1) / counts.sum(-1).clamp(min=1)

    def of_gold(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of each item: log-probabilities of gold tokens [N, B, T], real ones in mask [N, B, T] -> [N].

        Raises:
            ValueError: the shapes do not agree.
        """
        tokens = torch.where(mask, 0, NO_TOKEN)
        return self.per_item(outputs, torch.stack((tokens, tokens), -1))

    def forward(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar, in the dtype of the parameters, also under autocast.

        Args:
            outputs: [B, T, V] log-probabilities of all tokens; or, as in a bank, [B, T] those of the gold tokens, or
                [B, T, T] those that each position gives to each gold token.
            targets: [B, T] gold tokens; or, as in a bank, [B, T, 2] gold and most probable tokens.
            mask: [B, T], true for real tokens; by default, the tokens that are not negative.

        Raises:
            UsageError: a model is being trained with this surrogate, which has not been fitted.
            ValueError: the shapes do not agree.
        """
        if mask is None and (outputs.dim() == 2 or targets.dim() == 3):
            return super().forward(outputs, targets)
        self._refuse_unfitted(outputs, targets)
        mask = targets >= 0 if mask is None else mask
        check_shapes({"outputs [B, T, V]": outputs, "targets [B, T]": targets, "mask [B, T]": mask})
        gold = gather_targets(outputs, targets.clamp(min=0))
        return self.of_gold(gold[None], mask[None])[0]

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless the shapes are those of `features`."""
        check_tokens(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the tokens of each item: [N]; shapes as in `features`."""
        check_tokens(outputs, targets)
        mask = targets[..., 0].long() != NO_TOKEN
        return -widen(own_tokens(outputs)).where(mask, 0).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

    @staticmethod
    def gold(targets: Tensor) -> Tensor:
        """Return the gold tokens [..., T] of targets [..., T, 2]: the most probable ones belong to the predictions."""
        return targets[..., 0]


def own_tokens(outputs: Tensor) -> Tensor:
    """Return the log-probability of each position's own gold token: outputs [N, B, T] or [N, B, T, T] -> [N, B, T]."""
    return outputs.diagonal(dim1=-2, dim2=-1) if outputs.dim() == 4 else outputs
