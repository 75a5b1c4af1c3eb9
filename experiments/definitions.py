"""What every number on a page means, in words and as a formula: the one place where that is written for readers.

The code that computes retrieval metrics is retrieval/metrics.py; of detection, datamodules/detection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Definition(NamedTuple):
    """One metric, whatever its cut-off and whoever's ranking it is of."""

    name: str  # as a reader knows it; N and IoU stand for numbers
    pattern: str  # of the keys it defines, without split and feature in front
    words: str
    formula: str = ""  # plain text; f(x) for an index, so that it can be copied

    @property
    def anchor(self) -> str:
        """Its place on a page."""
        return "def-" + re.sub(r"[^A-Za-z]+", "-", self.name).strip("-")


SYMBOLS = (
    "A query names labels L, a label perhaps twice. Its list holds gallery items, best first; an item counts by its "
    "first label. hit(i) = 1 where item i of the list has a label of the query, else 0; H(i) = hit(1) + … + hit(i). "
    "P = gallery items of the query's labels, those of a label named twice counted twice; D = the same items, each "
    "once. N is the cut-off, k = min(N, P, length of the list). Every metric is a fraction, the mean over queries; a "
    "query that cannot be scored (a label without gallery items) counts as 0."
)

RETRIEVAL = (
    Definition(
        "mAP@N",
        r"(mAP|AP)@\d+",
        "Official. For each hit among the first k, the share of hits up to there; the mean of these over the hits that "
        "came. Hits that never come cost nothing: a list with one of a query's products only can reach 1. AP@N is that "
        "of one query.",
        "AP@N = Σ i=1…k hit(i) · H(i) / i, divided by H(k); 0 if H(k) = 0",
    ),
    Definition(
        "mAR@N",
        r"(mAR|recall)@\d+",
        "Official. Each label is due an equal part of the first N places, at most as many as it has gallery items; the "
        "part of what is due that came, averaged over the query's labels. A product that is not found costs its share. "
        "recall@N is that of one label, before the mean over labels.",
        "due(c) = min(times c is named · ⌊N / |L|⌋, items of c); got(c) = items of c among the first N; "
        "AR@N = mean over distinct c of min(got(c), due(c)) / due(c); 0 if an item within N is not in the gallery",
    ),
    Definition(
        "Prec@N",
        r"Prec@\d+",
        "Official. Hits among the first k. As k is never more than the items there are to be found, a perfect list "
        "has 1.",
        "Prec@N = H(k) / k",
    ),
    Definition(
        "coverage@N",
        r"(textbook/)?(coverage|found)@\d+",
        "This project's own, the same under either definition: of the query's distinct labels, the part with at least "
        "one item among the first N. found@N is that of one label.",
        "coverage@N = number of distinct c with got(c) ≥ 1, divided by the number of distinct c",
    ),
    Definition(
        "textbook mAP@N",
        r"textbook/mAP@\d+",
        "The usual definition. As mAP@N, but over the whole first N, and divided by all the hits there could be: a hit "
        "that never comes counts as 0.",
        "AP@N = Σ i=1…N hit(i) · H(i) / i, divided by min(D, N)",
    ),
    Definition(
        "textbook mAR@N",
        r"textbook/mAR@\d+",
        "The usual definition. As mAR@N, but what a label is due is its rounded part of N (half to even), at least 1.",
        "due(c) = min(max(1, round(N · times c is named / |L|)), items of c); "
        "AR@N = mean over distinct c of min(1, got(c) / due(c))",
    ),
    Definition(
        "textbook Prec@N",
        r"textbook/Prec@\d+",
        "The usual definition. Hits among the first N, whatever there is to be found: with fewer than N items to find "
        "it cannot reach 1.",
        "Prec@N = H(N) / N",
    ),
    Definition(
        "same/mAP@N",
        r"same/mAP@\d+",
        "The identical product. The queries are gallery items that another one shares its label with, each searched "
        "among the others. As mAP@N; officially the query itself, gone from its list, still counts among P.",
        "AP@N as above, with P = items of the query's label, the query included",
    ),
    Definition(
        "same/Prec@N",
        r"same/Prec@\d+",
        "The identical product. As Prec@N; since the query counts among P and cannot come, k may be one too large and "
        "a perfect list may stay below 1.",
        "Prec@N = H(k) / k, with P as in same/mAP@N",
    ),
    Definition(
        "textbook same/mAP@N",
        r"textbook/same/mAP@\d+",
        "The identical product by the usual definition; the query itself is not to be found.",
        "AP@N = Σ i=1…N hit(i) · H(i) / i, divided by min(D − 1, N)",
    ),
    Definition(
        "textbook same/Prec@N",
        r"textbook/same/Prec@\d+",
        "The identical product by the usual definition.",
        "Prec@N = H(N) / N",
    ),
    Definition(
        "product − this",
        r"product - this",
        "The score of what is named first (the product feature, or a table's base row) minus that of this row, query "
        "by query: the mean, with a 95 % interval. For it the queries are drawn again with replacement many times "
        "(bootstrap), and the seeds where there are several. Only an interval that excludes 0 shows a difference.",
        "mean over queries q of score(first, q) − score(this, q)",
    ),
    Definition(
        "instances",
        r"instances/(without|per_query)",
        "How many queries have no box, and how many boxes a query has on average.",
    ),
    Definition(
        "zero_vectors",
        r"zero_vectors",
        "Embeddings that are all 0, as a product of ReLUs can be; they match nothing.",
    ),
    Definition(
        "false_negatives_per_batch",
        r"false_negatives_per_batch",
        "Of the pairs that a contrast over a batch of random gallery items takes for different products, how many "
        "share a label.",
        "B · (B − 1) · share of pairs of gallery items with the same label",
    ),
)

DETECTION = (
    Definition(
        "recall@n/IoU",
        r"recall@\d+/IoU\d+",
        "Of all true boxes, the part that one of a picture's n most confident boxes overlaps by IoU 0.50 (or 0.75) or "
        "more. What is in the box is not asked.",
        "IoU = area of the boxes' intersection / area of their union; recall@n = true boxes found / true boxes",
    ),
    Definition(
        "precision/IoU",
        r"precision/IoU\d+",
        "Of all boxes found, the part that overlaps a true box by IoU 0.50 or more.",
        "precision = boxes found that match a true box / boxes found",
    ),
    Definition("proposals", r"proposals", "Boxes found in a picture, on average."),
    Definition("pictures", r"pictures|true_boxes", "Pictures the numbers are of, and true boxes in them."),
)

LOSSES = (
    Definition("loss", r"loss", "What training minimises: the sum of all losses, each with its weight."),
    Definition("loss_mlm", r"loss_mlm", "Masked words: cross-entropy of the masked tokens of the caption."),
    Definition("loss_mlm_entity", r"loss_mlm_entity", "The same for the caption's entities."),
    Definition("loss_mrm", r"loss_mrm", "Masked regions: squared error of the features of those of the picture."),
    Definition("loss_mrc", r"loss_mrc(_kl)?", "Masked regions: what a detector recognised in them, as classes."),
    Definition("loss_clr", r"loss_clr", "Contrast (NT-Xent) of picture and caption of an item against all others."),
    Definition("loss_infonce", r"loss_(infonce|sigmoid)", "Contrast of pictures with captions, as in CLIP or SigLIP."),
    Definition("loss_view", r"loss_view", "Contrast of two views of the same picture or caption."),
    Definition("loss_itm", r"loss_itm", "Matching: whether picture and caption belong together."),
    Definition("loss_wra", r"loss_wra", "Alignment: the least cost of moving words onto regions."),
    Definition("loss_node", r"loss_node", "Related entities of the graph lie closer than unrelated ones."),
    Definition("loss_subgraph", r"loss_subgraph", "Related entities are more alike than unrelated ones."),
    Definition("loss_objectness", r"loss_(objectness|classifier)", "Product or background, of proposals and of boxes."),
    Definition("loss_box_reg", r"loss_(rpn_)?box_reg", "How far proposals and boxes are from the pasted products."),
    Definition("loss_instance", r"loss_instance", "Contrast of a cut-out pasted twice against all others."),
)

SPEED = (
    Definition("samples/s", r"samples_per_second", "Items trained on in a second, evaluations left out."),
    Definition("data_wait_share", r"data_wait_share", "Part of the training time spent waiting for data."),
    Definition("peak_memory_mb", r"peak_memory_mb", "The most memory in use, in MB: of the GPU, or of the process."),
    Definition(
        "mfu",
        r"mfu",
        "Utilisation: operations the model needs over those that a large matrix product does in the same time on the "
        "same device.",
    ),
)

# Whose ranking a number is of, by the name that a row or column has.
RANKINGS = {
    "product feature": "picture and caption together, by the feature chosen on val",
    "re-ranked": "its first items put in the order of the matching head",
    "image only": "the picture alone",
    "text only": "the caption alone",
    "image → text": "query pictures against gallery captions",
    "text → image": "query captions against gallery pictures",
    "whole picture": "the query's picture read as one",
    "detected boxes": "the query read by the boxes that a detector found",
    "true boxes": "the query read by its true boxes, which no detector knows",
    "untrained model": "the same model before training",
    "TF-IDF on captions": "words of the captions compared, nothing learned",
    "random order": "items drawn by lot",
}
_PREFIXES = "image|text|image->text|text->image|whole|detected|true|rerank|untrained|tfidf|random"
_FRONT = re.compile(rf"^((train|val|test|pasted|throughput)/)?((feature/[^/]+|{_PREFIXES})/)?")


def define(key: str) -> Definition | None:
    """The definition of a metric by its key, as `test/image/mAP@10` or `val/recall@10/IoU50`; None: not known here.

    Losses of a model that is not the project's own are not known.
    """
    bare = _FRONT.sub("", key)
    for definition in (*RETRIEVAL, *DETECTION, *LOSSES, *SPEED):
        if re.fullmatch(definition.pattern, bare):
            return definition
    return None


def definitions(keys: Iterable[str]) -> list[Definition]:
    """Of several keys, each once, in the order they stand here."""
    wanted = {define(key) for key in keys}
    return [one for one in (*RETRIEVAL, *DETECTION, *LOSSES, *SPEED) if one in wanted]


def rankings(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of rows or columns that stand for a ranking, or begin with one, and what it is; in the order above."""
    names = list(names)
    return [(name, words) for name, words in RANKINGS.items() if any(one.startswith(name) for one in names)]


def anchor(key: str) -> str:
    """The place of a key's definition on a page; "" if it has none."""
    found = define(key)
    return found.anchor if found else ""
