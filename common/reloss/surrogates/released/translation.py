"""The release's network for translation: a small Transformer over the log-probabilities of a sentence's gold tokens.

Each log-probability passes two linear layers and gets a learned position; two Transformer layers let the tokens of a
sentence see each other; two more linear layers give one number per token. The release takes positions from its mask of
real tokens with fairseq's helper, which reads True as its padding index, 1: all real tokens get the same position.

Source: the `ReLoss` of non-autoregressive translation in hunto/ReLoss, with layers named as fairseq's.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_POSITION = 2  # fairseq's learned positions start after its padding index, 1
PADDING_POSITION = 1
DROPOUT = 0.1


class PositionEmbedding(nn.Embedding):
    """Learned positions of the tokens of a sentence.

    Args:
        length: the longest sentence; tokens beyond it get the last position.
        width: size of the hidden values.
        counted: whether real tokens get their own places. If not, they share one, as in the release.
    """

    def __init__(self, length: int, width: int, counted: bool) -> None:
        super().__init__(length + FIRST_POSITION, width, padding_idx=PADDING_POSITION)
        self.counted = counted

    def add_to(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Return hidden [S, T, D] plus the positions of the tokens, real ones in `real` [S, T], after dropout."""
        return F.dropout(hidden + self(self.places(real)), DROPOUT, self.training)

    def places(self, real: Tensor) -> Tensor:
        """Return the position of each token, real ones in `real` [S, T]: [S, T]."""
        counted = real if self.counted else ~real
        places = FIRST_POSITION - 1 + counted.cumsum(-1)
        return places.clamp(max=self.num_embeddings - 1).where(counted, PADDING_POSITION)


class TransformerLayer(nn.Module):
    """A Transformer encoder layer with ELU, normalised after each part; parameters are named as fairseq's.

    Attention is written out, so that its gradient can be differentiated again (for the gradient penalty).
    """

    def __init__(self, width: int, feedforward: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("k", "v", "q", "out")})
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, feedforward)
        self.fc2 = nn.Linear(feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.heads = heads

    def forward(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Return the outputs of the layer: hidden [S, T, D], real tokens in `real` [S, T] -> [S, T, D]."""
        hidden = self.self_attn_layer_norm(hidden + self._drop(self._attention(hidden, real)))
        return self.final_layer_norm(hidden + self._drop(self.fc2(F.elu(self.fc1(hidden)))))

    def _attention(self, hidden: Tensor, real: Tensor) -> Tensor:
        query, key, value = (
            self.self_attn[f"{name}_proj"](hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv"
        )
        scores = query @ key.mT / query.shape[-1] ** 0.5
        # In a sentence without tokens every score is masked: finite values avoid 0 / 0.
        scores = scores.masked_fill(~real[:, None, None], torch.finfo(scores.dtype).min)
        attended: Tensor = self.self_attn["out_proj"]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return attended

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, DROPOUT, self.training)


def token_layers(inputs: int, width: int) -> nn.Sequential:
    """Return the layers that each token passes first, `logits_layer` in the release."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())


def loss_layers(width: int) -> nn.Sequential:
    """Return the layers from the hidden values of a token to its loss, `loss_layer` in the release."""
    return nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))


def transform(
    first: nn.Module, positions: PositionEmbedding, block: Iterable[nn.Module], last: nn.Module, features: Tensor
) -> Tensor:
    """Return the loss of each token: features [S, T, 2], log-probability and whether the token is real -> [S, T]."""
    gold, real = features[..., :1], features[..., 1] > 0
    hidden = positions.add_to(first(gold), real)
    for layer in block:
        hidden = layer(hidden, real)
    return last(hidden).squeeze(-1)


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of the network with these weights, except the number of heads, which they do not show."""
    try:
        length, width = weights["pe.weight"].shape
        feedforward = weights["block.0.fc1.weight"].shape[0]
    except KeyError:
        return {}
    return {"width": width, "feedforward": feedforward, "length": length - FIRST_POSITION}
