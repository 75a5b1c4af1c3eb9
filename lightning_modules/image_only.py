"""ImageOnly: pictures alone, the floor that every fused model must clear; a contrast of two views.

Source: SimCLR, Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv
2002.05709; the backbone is the image stream of the fused models (CAPTURE, arXiv 2107.14572, §4.2).

Differs:
    * Views are weaker (`layers/views.py`): what tells products apart must survive them. Of stored region features,
      which cannot be cropped again, each view leaves out a random half.
    * The pooler, ReLU of one linear layer, stands in for the projection head of two layers; `image_bag` is what lies
      before it.
    * AdamW with CAPTURE's rate, decay and schedule instead of LARS and a cosine; a batch of 64 instead of 4,096.
    * Backbones have no batch statistics.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import check_heads
from lightning_modules.layers.embeddings import RegionEmbedding
from lightning_modules.layers.pooling import StreamPooling
from lightning_modules.layers.regions import GlobalPooling, build_visual_input, with_global
from lightning_modules.layers.views import Views
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.retrieval_module import RetrievalModule, check_objectives
from lightning_modules.single_stream import SingleStream
from lightning_modules.stream_features import MODALITIES, Stream, by_name, modality_features, stream_whitening

OBJECTIVES = ("view",)


class ImageOnly(RetrievalModule):
    """CAPTURE's image stream, trained without any caption.

    Args:
        objectives: ["view"]: two random views of a picture are each other's positive.
        tokenizer: As CAPTURE's; batches hold captions, which this model does not read.
        visual_input, num_regions, region_width, image_size_px, backbone, backbone_weights: As CAPTURE's.
        width, output_width, image_layers, image_heads, image_ffn, dropout: As CAPTURE's.
        init_std, image_pooling, global_pooling, region_norm: As CAPTURE's.
        temperature: τ of the contrast; SimCLR's best (§5.1, table 5).
        smallest_crop: Least share of a picture's area that a view shows (pixels only).
        jitter: Strength of a view's change of brightness, contrast and saturation, in [0, 1] (pixels only).
        retrieval_feature: "image_stream" is the contrasted vector; see `stream_features.py` for the others.
        whitening_samples: Training pictures that the whitening is learned from; 0 leaves vectors as they are.
    """

    candidate_features = MODALITIES["image"]
    modalities: ClassVar = {"image": MODALITIES["image"]}

    def __init__(
        self,
        objectives: list[str] = ["view"],  # noqa: B006  (read only; jsonargparse shows it as the default)
        tokenizer: str = "bert-base-chinese",
        visual_input: Literal["regions", "grid"] = "regions",
        num_regions: int = 36,
        region_width: int = 2048,
        image_size_px: int = 224,
        backbone: str = "resnet50",
        backbone_weights: str | None = None,
        width: int = 768,
        output_width: int = 512,
        image_layers: int = 4,
        image_heads: int = 8,
        image_ffn: int = 1024,
        dropout: float = 0.1,
        init_std: float = 0.02,
        image_pooling: StreamPooling = "first",
        global_pooling: GlobalPooling = "mean",
        region_norm: bool = True,
        temperature: float = 0.1,
        smallest_crop: float = 0.3,
        jitter: float = 0.4,
        retrieval_feature: str = "image_stream",
        whitening_samples: int = 0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        pretrained_lr_scale: float = 0.1,
    ) -> None:
        super().__init__(retrieval_feature, lr, weight_decay, warmup_fraction, pretrained_lr_scale)
        self.save_hyperparameters()
        check_objectives(objectives, OBJECTIVES)
        if not 0 < smallest_crop <= 1:
            raise ModelError(f"model.smallest_crop {smallest_crop} must lie in (0, 1]")
        if not 0 <= jitter <= 1:
            raise ModelError(f"model.jitter {jitter} must lie in [0, 1]")
        self.views = Views(smallest_crop, jitter)
        self.global_pooling: GlobalPooling = global_pooling
        self.spec = InputSpec(
            tokenizer,
            visual_input=visual_input,
            num_regions=num_regions,
            region_width=region_width,
            image_size_px=image_size_px,
        )
        self.visual = build_visual_input(visual_input, region_width, backbone, image_size_px, backbone_weights)
        if backbone_weights:
            self.pretrained_prefixes += ("visual.backbone.",)
        embedding = RegionEmbedding(self.visual.region_width, width, dropout, region_norm)
        check_heads(image_layers, image_heads=image_heads, width=width)
        self.network = SingleStream(
            embedding, width, output_width, image_layers, image_heads, image_ffn, dropout, image_pooling, init_std
        )
        self.view = CrossModalContrast(temperature)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            self.whitening.update(stream_whitening("image", width, output_width))

    def input_spec(self) -> InputSpec:
        return self.spec

    def stream(self, batch: ProductBatch) -> Stream:
        """The pictures of a batch through the whole network."""
        regions = with_global(self.visual(batch), self.global_pooling, batch)
        return self.network(regions.mask_BR, regions.features_BRD, regions.boxes_BR5)

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """§2.1: both views of each picture in one pass."""
        first_BD, second_BD = self.stream(self.views.two(batch, draws)).pooled_BD.chunk(2)
        return {"loss_view": self.view(first_BD, second_BD)}

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        stream = self.stream(batch)
        return modality_features("image", stream, self.whiten(by_name("image", stream)))

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        return by_name("image", self.stream(batch))
