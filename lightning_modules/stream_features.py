"""Vectors of text and image before the two meet, and the retrieval features made of them: the same for every method.

Every method that has such vectors is compared by the same candidates, chosen on val, so that a difference between
methods is none between features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.layers.pooling import PositionPooling, weighted_sum
from lightning_modules.layers.whitening import Whitening

# Two vectors side by side. "stream": the pooled streams, which a contrast compares. "bag": the means over positions of
# the embedding layer and of the last self layer; bags and "image_whitened" are whitened where `whitening_samples` says
# so. A contrast drives out of the streams what only one modality knows (a brand that no pixel shows); bags still hold
# it. "_4to1", "_8to1": the caption counts four or eight times.
STREAM_CANDIDATES = (
    "concat_stream",
    "concat_bag",
    "bag_and_stream",
    "bag_and_stream_4to1",
    "bag_and_stream_8to1",
    "bags_and_stream",
    "bags_and_stream_4to1",
    "bags_and_stream_8to1",
)
MODALITIES = {
    "image": ("image_stream", "image_whitened", "image_bag"),
    "text": ("text_stream", "text_whitened", "text_bag"),
}
# modality -> the bag over its embedding layer, the bag over its last self layer
_BAGS = {
    "text": ("words", "text_stream"),
    "image": ("regions", "image_stream"),
    "entity": ("entity_words", "entity_stream"),
}


class Stream(NamedTuple):
    """One modality on its own."""

    states_BND: Tensor  # after its self layers; position 0 = [CLS] or the whole image
    pooled_BD: Tensor
    embedded_bag_BD: Tensor  # means over positions with the weights of the stream's pooling
    bag_BD: Tensor


def read_stream(
    pooling: PositionPooling, pooler: nn.Module, embedded_BND: Tensor, states_BND: Tensor, mask_BN: Tensor
) -> Stream:
    """Pool a stream: its embedding layer and its states after the self layers, mask True = real."""
    weight_BN = pooling.weights(states_BND, mask_BN)
    pooled_BD = torch.relu(pooler(pooling(states_BND, weight_BN)))
    return Stream(states_BND, pooled_BD, weighted_sum(embedded_BND, weight_BN), weighted_sum(states_BND, weight_BN))


def by_name(modality: str, stream: Stream) -> dict[str, Tensor]:
    """What of one modality ("text", "image" or "entity") may be whitened."""
    embedded, bag = _BAGS[modality]
    return {embedded: stream.embedded_bag_BD, bag: stream.bag_BD, f"pooled_{modality}": stream.pooled_BD}


class Streams(NamedTuple):
    """Both modalities before they meet."""

    text: Stream
    image: Stream

    def by_name(self) -> dict[str, Tensor]:
        """What may be whitened."""
        return by_name("text", self.text) | by_name("image", self.image)


def stream_whitening(modality: str, width: int, pooled_width: int) -> dict[str, nn.Module]:
    """A whitening for each vector of `by_name`."""
    whitening: dict[str, nn.Module] = {name: Whitening(width) for name in _BAGS[modality]}
    # A contrast has already spread the pooled stream: it needs little more than centring.
    return whitening | {f"pooled_{modality}": Whitening(pooled_width, shrinkage=1.0)}


def modality_features(modality: str, stream: Stream, whitened: dict[str, Tensor]) -> dict[str, Tensor]:
    """The features of one modality alone: `MODALITIES[modality]`."""
    embedded, bag = _BAGS[modality]
    return {
        f"{modality}_stream": stream.pooled_BD,
        f"{modality}_whitened": whitened[f"pooled_{modality}"],
        f"{modality}_bag": side_by_side(whitened[embedded], whitened[bag]),
    }


def stream_features(streams: Streams, whitened: dict[str, Tensor]) -> dict[str, Tensor]:
    """`STREAM_CANDIDATES` and the features of each modality alone; `whitened` by the names of `Streams.by_name`."""
    alone = modality_features("image", streams.image, whitened) | modality_features("text", streams.text, whitened)
    text_bag_BD, image_bag_BD, image_BD = alone["text_bag"], alone["image_bag"], alone["image_whitened"]
    image_both_BD = side_by_side(image_bag_BD, image_BD)
    return alone | {
        "concat_stream": side_by_side(streams.text.pooled_BD, streams.image.pooled_BD),
        "concat_bag": side_by_side(text_bag_BD, image_bag_BD),
        "bag_and_stream": side_by_side(text_bag_BD, image_BD),
        "bag_and_stream_4to1": side_by_side(text_bag_BD, image_BD, share=1 / 4),
        "bag_and_stream_8to1": side_by_side(text_bag_BD, image_BD, share=1 / 8),
        "bags_and_stream": side_by_side(text_bag_BD, image_both_BD),
        "bags_and_stream_4to1": side_by_side(text_bag_BD, image_both_BD, share=1 / 4),
        "bags_and_stream_8to1": side_by_side(text_bag_BD, image_both_BD, share=1 / 8),
    }


def side_by_side(first_BD: Tensor, second_BD: Tensor, share: float = 1.0) -> Tensor:
    """Both normalised, then concatenated: the cosine is the mean of the two, the second counting `share`."""
    unit = nn.functional.normalize
    return torch.cat([unit(first_BD, dim=-1), share**0.5 * unit(second_BD, dim=-1)], -1)
