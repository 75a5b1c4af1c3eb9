"""What of CAPTURE's outputs may serve as retrieval feature: the authors' product and the alternatives to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_modules.layers.pooling import masked_mean

if TYPE_CHECKING:
    from lightning_modules.capture_network import Fused, Streams

# Products are element-wise image ⊙ text; "both" concatenates the co-transformer's and the streams'.
# Nothing trains the co-transformer's first positions directly (MLM skips [CLS], MRM skips the whole-image region,
# CLR reads the streams), hence the alternatives: streams alone, means over all co-transformer positions, and bags:
# means over positions before the streams meet. Bags and `*_whitened`, the pooled streams, are whitened where
# `whitening_samples` says so. CLR drives out of the streams what only one modality knows (a brand that no pixel
# shows); the bags still hold it.
CANDIDATES = (
    "product_both",
    "product_co",
    "product_stream",
    "concat_stream",
    "concat_co",
    "concat_mean",
    "concat_both",
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


def retrieval_features(
    streams: Streams, fused: Fused, whitened: dict[str, Tensor], token_mask_BT: Tensor, region_mask_BR: Tensor
) -> dict[str, Tensor]:
    """Every retrieval feature from one forward pass, by name.

    `product_both` is the authors' (reply in their repository, issue 5).
    """
    stream_text_BD, stream_image_BD = streams.pooled_text_BD, streams.pooled_image_BD
    co_text_BD, co_image_BD = fused.text_BTD[:, 0], fused.image_BRD[:, 0]
    product_co_BD = co_text_BD * co_image_BD
    product_stream_BD = stream_text_BD * stream_image_BD
    concat_stream_BD = _side_by_side(stream_text_BD, stream_image_BD)
    concat_mean_BD = _side_by_side(
        masked_mean(fused.text_BTD, token_mask_BT), masked_mean(fused.image_BRD, region_mask_BR)
    )
    text_bag_BD = _side_by_side(whitened["words"], whitened["text_stream"])
    image_bag_BD = _side_by_side(whitened["regions"], whitened["image_stream"])
    image_whitened_BD = whitened["pooled_image"]
    image_bag_and_stream_BD = _side_by_side(image_bag_BD, image_whitened_BD)
    return {
        "image_stream": stream_image_BD,
        "text_stream": stream_text_BD,
        "image_whitened": image_whitened_BD,
        "text_whitened": whitened["pooled_text"],
        "image_bag": image_bag_BD,
        "text_bag": text_bag_BD,
        "product_both": torch.cat([product_co_BD, product_stream_BD], -1),
        "product_co": product_co_BD,
        "product_stream": product_stream_BD,
        "concat_stream": concat_stream_BD,
        "concat_co": _side_by_side(co_text_BD, co_image_BD),
        "concat_mean": concat_mean_BD,
        "concat_both": torch.cat([concat_stream_BD, concat_mean_BD], -1),
        "concat_bag": _side_by_side(text_bag_BD, image_bag_BD),
        # The caption's bag beside the picture's contrasted stream, without and with the picture's bag; the caption
        # counts once, four or eight times.
        "bag_and_stream": _side_by_side(text_bag_BD, image_whitened_BD),
        "bag_and_stream_4to1": _side_by_side(text_bag_BD, image_whitened_BD, share=1 / 4),
        "bag_and_stream_8to1": _side_by_side(text_bag_BD, image_whitened_BD, share=1 / 8),
        "bags_and_stream": _side_by_side(text_bag_BD, image_bag_and_stream_BD),
        "bags_and_stream_4to1": _side_by_side(text_bag_BD, image_bag_and_stream_BD, share=1 / 4),
        "bags_and_stream_8to1": _side_by_side(text_bag_BD, image_bag_and_stream_BD, share=1 / 8),
    }


def _side_by_side(first_BD: Tensor, second_BD: Tensor, share: float = 1.0) -> Tensor:
    """Both normalised, then concatenated: the cosine is the mean of the two, the second counting `share`."""
    unit = nn.functional.normalize
    return torch.cat([unit(first_BD, dim=-1), share**0.5 * unit(second_BD, dim=-1)], -1)
