"""What of EGE-CMP's outputs may serve as retrieval feature: CAPTURE's candidates, and bags that know the entities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lightning_modules.capture_features import CANDIDATES as PAIR_CANDIDATES
from lightning_modules.capture_features import retrieval_features
from lightning_modules.capture_network import Fused
from lightning_modules.stream_features import by_name, modality_features, side_by_side

if TYPE_CHECKING:
    from lightning_modules.ege_network import ThreeFused, ThreeMasks, ThreeStreams

# CAPTURE's "bags_and_stream…", with the bag of the entities beside that of the caption: half of the caption's share.
CANDIDATES = (*PAIR_CANDIDATES, "bags_and_entities", "bags_and_entities_4to1", "bags_and_entities_8to1")


def to_whiten(streams: ThreeStreams) -> dict[str, Tensor]:
    """What of the three streams may be whitened, by name."""
    return streams.pair().by_name() | by_name("entity", streams.entity)


def ege_features(
    streams: ThreeStreams, fused: ThreeFused, whitened: dict[str, Tensor], masks: ThreeMasks
) -> dict[str, Tensor]:
    """Every retrieval feature from one forward pass, by name; `whitened` by the names of `to_whiten`.

    `concat_co` is the authors': [v ; t], each of unit length.
    """
    pair = Fused(fused.text_BTD, fused.image_BRD)
    features = retrieval_features(streams.pair(), pair, whitened, masks.text_BT, masks.image_BR)
    entity_BD = modality_features("entity", streams.entity, whitened)["entity_bag"]
    words_BD = side_by_side(features["text_bag"], entity_BD)
    image_BD = side_by_side(features["image_bag"], features["image_whitened"])
    return features | {
        "bags_and_entities": side_by_side(words_BD, image_BD),
        "bags_and_entities_4to1": side_by_side(words_BD, image_BD, share=1 / 4),
        "bags_and_entities_8to1": side_by_side(words_BD, image_BD, share=1 / 8),
    }
