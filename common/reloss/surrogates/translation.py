"""The surrogate for translations: a network over the log-probabilities of a sentence's gold tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.metrics.shapes import check_shapes
from reloss.surrogates.base import SurrogateLoss, check_sizes
from reloss.surrogates.network import evaluate
from reloss.surrogates.options import Fidelity, Input, Output

Positions = Literal["released", "counted"]
Average = Literal["sentence", "token"]

NO_TOKEN = -1  # in recorded targets, where there is no token
FIRST_POSITION = 2  # fairseq's learned positions begin behind those of its padding index, 1
PADDING_POSITION = 1


class TranslationReLoss(SurrogateLoss):
    """ReLoss for translation: a learned function of the log-probabilities that a model gives the gold tokens.

    Each log-probability passes two layers, then two Transformer layers that see the whole sentence, then two layers to
    one number; those of a sentence's real tokens are averaged. Architecture and parameter names are the release's, so
    that its weights load; dropout is 0.1 while it learns. The defaults are the release's too, but for the sizes, which
    the release takes from the translation model; the other choices put its traps right:

    Args:
        output: `absolute` takes the absolute value of a sentence's loss, which folds a curve that crosses zero.
            `identity` leaves the sign alone. `monotone` has no attention, so that the loss falls as any gold token's
            probability rises, by construction: it is a network of non-negative weights over windows of `window`
            neighbouring tokens, which are the n-grams that BLEU counts.
        positions: `released` gives all real tokens the same position: the release asks fairseq for the positions of its
            mask of real tokens, and fairseq takes True, which equals its padding index 1, for padding. `counted` gives
            them their places.
        average: `sentence` is the mean of the sentences' means, in which a token of a short sentence weighs more;
            `token` is the mean over all tokens of a batch, which is how corpus BLEU counts.
        width: of the layers (the release's: the model's embedding size).
        feedforward: of the hidden layers in the Transformer layers.
        heads: of their attention.
        length: the most tokens of a sentence; what is beyond has the last position.
        window: of `monotone`, in tokens.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown choice, a size or scale that is not positive, or a width that is not a multiple of heads.
    """

    def __init__(
        self,
        output: Output = "absolute",
        positions: Positions = "released",
        average: Average = "sentence",
        width: int = 512,
        feedforward: int = 2048,
        heads: int = 8,
        length: int = 1024,
        window: int = 4,
        scale: float = 1.0,
    ) -> None:
        super().__init__(scale)
        for name, value, known in (
            ("output", output, get_args(Output)),
            ("positions", positions, get_args(Positions)),
            ("average", average, get_args(Average)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {value}")
        check_sizes(width=width, feedforward=feedforward, heads=heads, length=length, window=window)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.output: Output = output
        self.positions: Positions = positions
        self.average: Average = average
        self.sizes = {"width": width, "feedforward": feedforward, "heads": heads, "length": length, "window": window}
        inputs = window if output == "monotone" else 1
        self.logits_layer = nn.Sequential(nn.Linear(inputs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        if output != "monotone":
            self.pe = nn.Embedding(length + FIRST_POSITION, width, padding_idx=PADDING_POSITION)
            self.block = nn.ModuleList(_EncoderLayer(width, feedforward, heads) for _ in range(2))
        self.loss_layer = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    @classmethod
    def arguments(cls, shape: Sequence[int], *, fidelity: Fidelity, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments for log-probabilities [T] of a sentence's gold tokens.

        Fidelity decides on positions and average. The network is small: a bank of a few thousand sentences does not
        feed one of the release's size.

        Raises:
            ValueError: one example's outputs have another number of dimensions.
        """
        if len(shape) != 1:
            raise ValueError(f"expected log-probabilities [T] of a sentence's gold tokens, not {list(shape)}")
        released = fidelity == "released"
        return {
            "output": output,
            "positions": "released" if released else "counted",
            "average": "sentence" if released else "token",
            **{"width": 32, "feedforward": 64, "heads": 4, "length": shape[0]},
        }

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""
        chosen = {"output": self.output, "positions": self.positions, "average": self.average}
        return {**chosen, **self.sizes, "scale": self.scale}

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the sizes of the network that the weights are of; they do not show the number of heads."""
        try:
            length, width = weights["pe.weight"].shape
            feedforward = weights["block.0.fc1.weight"].shape[0]
        except KeyError:
            return {}
        return {"width": width, "feedforward": feedforward, "length": length - FIRST_POSITION}

    def forward(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar, in float32 also under autocast.

        Args:
            outputs: [B, T, V] log-probabilities of the tokens; or what a bank holds, see `per_item`.
            targets: [B, T] gold tokens.
            mask: [B, T], true for real tokens; by default all that are not negative.

        Raises:
            ValueError: the shapes do not agree.
        """
        if outputs.dim() == 2 and mask is None:
            return super().forward(outputs, targets)
        mask = targets >= 0 if mask is None else mask
        check_shapes({"outputs [B, T, V]": outputs, "targets [B, T]": targets, "mask [B, T]": mask})
        gold = outputs.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        return self.of_gold(gold[None], mask[None])[0]

    def per_item(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each item of recorded predictions.

        Args:
            outputs: [N, B, T] log-probabilities of the gold tokens.
            targets: [N, B, T, 2] gold and most probable tokens; the gold one is NO_TOKEN (-1) where there is none.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree.
        """
        self.check(outputs, targets)
        return self.of_gold(outputs, targets[..., 0] != NO_TOKEN)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless outputs are log-probabilities [N, B, T] and targets pairs of tokens [N, B, T, 2]."""
        check_shapes({"outputs [N, B, T]": outputs, "targets [N, B, T, 2]": targets})

    def of_gold(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of each item: log-probabilities of gold tokens [N, B, T], real ones in mask [N, B, T] -> [N].

        A sentence without tokens counts as one of loss 0 in the mean over sentences, and not at all in that over
        tokens.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            gold = outputs.to(next(self.parameters()).dtype).where(mask, 0)
            tokens = self._tokens(gold.flatten(0, 1), mask.flatten(0, 1)).view_as(gold).where(mask, 0)
            if self.average == "token" and self.output != "absolute":
                return self.scale * tokens.sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
            counts = mask.sum(-1)
            losses = tokens.sum(-1) / counts.clamp(min=1)
            losses = losses.abs() if self.output == "absolute" else losses
            if self.average == "sentence":
                return self.scale * losses.mean(-1)
            return self.scale * (losses * counts).sum(-1) / counts.sum(-1).clamp(min=1)

    def _tokens(self, gold: Tensor, mask: Tensor) -> Tensor:
        """Return a loss for each token: log-probabilities [S, T], 0 where the mask is false -> [S, T]."""
        if self.output == "monotone":
            return self._windows(gold)
        hidden = self.logits_layer(gold[..., None])
        hidden = F.dropout(hidden + self.pe(self._places(mask)), 0.1, self.training)
        for layer in self.block:
            hidden = layer(hidden, mask)
        return self.loss_layer(hidden).squeeze(-1)

    def _places(self, mask: Tensor) -> Tensor:
        counted = mask if self.positions == "counted" else ~mask
        places = FIRST_POSITION - 1 + counted.cumsum(-1)
        return places.clamp(max=self.pe.num_embeddings - 1).where(counted, PADDING_POSITION)

    def _windows(self, gold: Tensor) -> Tensor:
        """Return a loss for the window that ends at each token; before the first one, tokens are certain."""
        window = self.sizes["window"]
        hidden = F.pad(gold, (window - 1, 0)).unfold(-1, window, 1)
        layers = [layer for layer in (*self.logits_layer, *self.loss_layer) if isinstance(layer, nn.Linear)]
        return evaluate(layers, hidden, monotone=True)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of each item's tokens; shapes as in `per_item`."""
        check_shapes({"outputs [N, B, T]": outputs, "targets [N, B, T, 2]": targets})
        mask = targets[..., 0] != NO_TOKEN
        return -outputs.where(mask, 0).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

    @staticmethod
    def gold(targets: Tensor) -> Tensor:
        """Return the gold tokens [..., T] of targets [..., T, 2]: the most probable ones are the model's."""
        return targets[..., 0]


class _EncoderLayer(nn.Module):
    """A Transformer encoder layer, normalised after each part, with ELU; parameters are named as fairseq's.

    Attention is written out, so that its gradient can be differentiated again (the gradient penalty).
    """

    def __init__(self, width: int, feedforward: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("k", "v", "q", "out")})
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, feedforward)
        self.fc2 = nn.Linear(feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.heads = heads

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the layer's outputs: hidden [S, T, D], real tokens in mask [S, T] -> [S, T, D]."""
        hidden = self.self_attn_layer_norm(hidden + self._drop(self._attention(hidden, mask)))
        return self.final_layer_norm(hidden + self._drop(self.fc2(F.elu(self.fc1(hidden)))))

    def _attention(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            self.self_attn[f"{name}_proj"](hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv"
        )
        scores = query @ key.mT / query.shape[-1] ** 0.5
        # A sentence without tokens has nothing to look at: finite scores keep it from 0 / 0.
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        found: Tensor = self.self_attn["out_proj"]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return found

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, 0.1, self.training)
