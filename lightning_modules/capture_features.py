"""What of CAPTURE's outputs may serve as retrieval feature: the authors' product and the alternatives to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_modules.layers.pooling import masked_mean
from lightning_modules.stream_features import STREAM_CANDIDATES, Streams, side_by_side, stream_features

if TYPE_CHECKING:
    from lightning_modules.capture_network import Fused

# Products are element-wise image ⊙ text; "both" concatenates the co-transformer's and the streams'.
# Nothing trains the co-transformer's first positions directly (MLM skips [CLS], MRM skips the whole-image region,
# CLR reads the streams), hence the alternatives: streams alone, means over all co-transformer positions, and bags.
CANDIDATES = (
    "product_both",
    "product_co",
    "product_stream",
    "concat_co",
    "concat_mean",
    "concat_both",
    *STREAM_CANDIDATES,
)


def retrieval_features(
    streams: Streams, fused: Fused, whitened: dict[str, Tensor], token_mask_BT: Tensor, region_mask_BR: Tensor
) -> dict[str, Tensor]:
    """Every retrieval feature from one forward pass, by name.

    `product_both` is the authors' (reply in their repository, issue 5).
    """
    co_text_BD, co_image_BD = fused.text_BTD[:, 0], fused.image_BRD[:, 0]
    product_co_BD = co_text_BD * co_image_BD
    product_stream_BD = streams.text.pooled_BD * streams.image.pooled_BD
    concat_mean_BD = side_by_side(
        masked_mean(fused.text_BTD, token_mask_BT), masked_mean(fused.image_BRD, region_mask_BR)
    )
    of_streams = stream_features(streams, whitened)
    return of_streams | {
        "product_both": torch.cat([product_co_BD, product_stream_BD], -1),
        "product_co": product_co_BD,
        "product_stream": product_stream_BD,
        "concat_co": side_by_side(co_text_BD, co_image_BD),
        "concat_mean": concat_mean_BD,
        "concat_both": torch.cat([of_streams["concat_stream"], concat_mean_BD], -1),
    }
