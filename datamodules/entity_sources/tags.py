"""Which kinds of entities are kept: by default what the authors of EGE-CMP keep of their tagger's.

Source: REFERENCE of the released code's entity filter; its tagger is a commercial one for Chinese shop titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

# 普通词 common word, 符号 symbol, 型号 model number, 尺寸规格 size, 数字 number, 单位 unit, 营销服务 marketing,
# 材质 material, 地点地域 place, 影视名称 film
MULTI_PRODUCT = ("普通词", "符号", "型号", "尺寸规格", "数字", "单位", "营销服务", "材质", "地点地域", "影视名称")
# 人名 person, 人群 target group, 品类 category, 修饰 modifier, 否定 negation, 后缀 suffix, 风格 style, 时间季节 season,
# 代理 agency, 新词 new word, 赠送 gift
IDENTICAL_PRODUCT = (
    *MULTI_PRODUCT,
    "人名", "人群", "品类", "修饰", "否定", "后缀", "风格", "时间季节", "代理", "新词", "赠送",
)  # fmt: skip
DROP_LISTS = {"multi-product": MULTI_PRODUCT, "identical-product": IDENTICAL_PRODUCT, "none": ()}


class TagFilter(NamedTuple):
    """Tags that count.

    Args:
        keep: only these; empty = all.
        drop: not these.
    """

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = MULTI_PRODUCT

    def __call__(self, tag: str) -> bool:
        return tag not in self.drop and (not self.keep or tag in self.keep)

    def settings(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return {"keep": sorted(set(self.keep)), "drop": sorted(set(self.drop))}


def tag_filter(keep: Sequence[str] = (), drop: Sequence[str] = ("multi-product",)) -> TagFilter:
    """A filter from words of the command line; a drop list is named, or its tags are.

    Args:
        keep: tags; empty = all that are not dropped. A tag that is named here is kept though a named list drops it.
        drop: names of `DROP_LISTS` or tags.
    """
    dropped = [tag for word in drop for tag in DROP_LISTS.get(word, (word,))]
    return TagFilter(tuple(keep), tuple(tag for tag in dict.fromkeys(dropped) if tag not in keep))
