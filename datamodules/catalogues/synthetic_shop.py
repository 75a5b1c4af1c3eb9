"""The assortment of the synthetic cosmetics shop: brands × series × categories × shades, as plain tables.

Two facts make it a retrieval problem that needs both modalities. Brands of one *family* wear the same palette and sell
the same line-up of packs, so a picture tells category and shade but hardly the brand. Series words are shared between
brands, and captions (see `synthetic_captions`) seldom spell out category and shade, so a caption tells little of those.
"""

from __future__ import annotations

from typing import NamedTuple

from datamodules.catalogues.seeding import stream

Colour = tuple[int, int, int]


class Family(NamedTuple):
    """The palette that lookalike brands share."""

    body: Colour
    cap: Colour
    panel: Colour
    ink: Colour


class Brand(NamedTuple):
    latin: str  # what stands on the pack
    chinese: str  # what captions may say instead
    family: int
    lettering: int  # 0 to 3: bold, framed, spaced, small capitals


class Category(NamedTuple):
    name: str
    words: tuple[str, ...]  # synonyms, `name` first
    pack: str  # which drawing of `synthetic_packs`
    shades: tuple[tuple[str, Colour], ...] = ()  # neighbouring colours: the fine grain
    benefits: tuple[str, ...] = ()


class Product(NamedTuple):
    """One label of the shop."""

    label: str
    brand: Brand
    series: str
    series_index: int  # which of the brand's series: its motif on the pack
    category: Category
    shade: str  # "" where the category has none
    shade_colour: Colour


FAMILIES = (
    Family(body=(247, 240, 226), cap=(196, 152, 70), panel=(255, 252, 244), ink=(110, 78, 24)),
    Family(body=(34, 92, 76), cap=(20, 46, 42), panel=(222, 232, 214), ink=(14, 52, 42)),
    Family(body=(238, 160, 178), cap=(250, 240, 242), panel=(255, 232, 236), ink=(150, 36, 78)),
    Family(body=(38, 52, 112), cap=(196, 202, 212), panel=(228, 234, 246), ink=(24, 34, 88)),
)
NUM_USED_FAMILIES = 3  # four lookalike brands each; the fourth family is for shops of more than 12 brands

BRANDS = (
    Brand("LUMEA", "露美雅", 0, 0),
    Brand("ORIENNE", "欧丽恩", 0, 0),
    Brand("MIRABEL", "米拉贝", 0, 3),
    Brand("SOLVAY", "索葳", 0, 3),
    Brand("QINGYE", "青野", 1, 1),
    Brand("VERDANE", "芙丹", 1, 1),
    Brand("TIANYU", "天语", 1, 3),
    Brand("BOTANA", "宝坦娜", 1, 3),
    Brand("HANSU", "韩素", 2, 2),
    Brand("ROSELLE", "蔷薇尔", 2, 2),
    Brand("BELCORA", "贝珂拉", 2, 0),
    Brand("PINKO", "品蔻", 2, 0),
    Brand("NOVIA", "诺薇", 3, 0),
    Brand("ELVANE", "艾梵", 3, 1),
    Brand("KOSMEA", "珂诗美", 3, 2),
    Brand("AZURRA", "阿祖拉", 3, 3),
)

SERIES: dict[str, tuple[str, ...]] = {  # name and the words a seller may use instead
    "水光": ("水光", "水漾", "水感"),
    "雪肌": ("雪肌", "雪颜"),
    "黄金": ("黄金", "24K金", "金箔"),
    "玫瑰": ("玫瑰", "大马士革玫瑰"),
    "竹萃": ("竹萃", "竹炭"),
    "夜活": ("夜活", "夜间修护"),
    "丝绒": ("丝绒", "天鹅绒"),
    "蜗牛": ("蜗牛", "蜗牛原液"),
    "星辰": ("星辰", "星空"),
    "燕窝": ("燕窝", "金丝燕窝"),
}

PLAIN_CATEGORIES = (
    Category("面霜", ("面霜", "乳霜", "保湿霜"), "jar", benefits=("滋润", "保湿", "抗皱")),
    Category("洗面奶", ("洗面奶", "洁面乳", "洁面"), "tube", benefits=("清洁", "控油", "深层清洁")),
    Category("乳液", ("乳液", "润肤乳"), "pump", benefits=("补水", "滋润", "锁水")),
    Category("精华液", ("精华液", "精华", "安瓶"), "dropper", benefits=("抗皱", "紧致", "提亮")),
    Category("爽肤水", ("爽肤水", "化妆水", "柔肤水"), "bottle", benefits=("补水", "收缩毛孔", "控油")),
    Category("面膜", ("面膜", "贴片面膜"), "sachet", benefits=("补水", "提亮", "舒缓")),
    Category("防晒霜", ("防晒霜", "防晒乳", "防晒"), "flask", benefits=("隔离", "清爽", "防紫外线")),
    Category("眼霜", ("眼霜", "眼部精华霜"), "wand", benefits=("淡化细纹", "紧致", "去黑眼圈")),
)

COLOUR_CATEGORIES = (
    Category(
        "口红",
        ("口红", "唇膏", "唇釉"),
        "lipstick",
        (("正红", (200, 16, 36)), ("豆沙", (176, 84, 88)), ("珊瑚橘", (244, 104, 72)), ("梅子", (112, 20, 62))),
        ("显白", "不沾杯", "滋润"),
    ),
    Category(
        "指甲油",
        ("指甲油", "甲油"),
        "polish",
        (("奶茶", (190, 140, 110)), ("酒红", (120, 16, 40)), ("雾蓝", (96, 132, 178)), ("薄荷", (130, 206, 178))),
        ("快干", "持久", "显白"),
    ),
    Category(
        "粉饼",
        ("粉饼", "气垫", "蜜粉饼"),
        "compact",
        (
            ("象牙白", (250, 230, 208)),
            ("自然色", (228, 188, 150)),
            ("小麦色", (190, 138, 96)),
            ("粉调", (246, 206, 200)),
        ),
        ("控油", "遮瑕", "定妆"),
    ),
    Category(
        "眼影",
        ("眼影", "眼影盘"),
        "palette",
        (("大地", (150, 104, 72)), ("桃花", (232, 138, 150)), ("烟熏", (96, 92, 104)), ("蜜橘", (240, 150, 84))),
        ("持久", "防水", "不飞粉"),
    ),
    Category(
        "粉底液",
        ("粉底液", "粉底", "底妆"),
        "foundation",
        (("瓷白", (252, 232, 216)), ("暖肤", (224, 178, 136)), ("蜜糖", (176, 120, 78)), ("冷粉", (242, 208, 204))),
        ("遮瑕", "持久", "提亮"),
    ),
)

SERIES_PER_BRAND = 2
MAX_PRODUCTS_PER_BRAND = len(PLAIN_CATEGORIES) + sum(len(category.shades) for category in COLOUR_CATEGORIES)
MIN_LABELS = 24
MAX_LABELS = len(BRANDS) * MAX_PRODUCTS_PER_BRAND


def _line_up(seed: int, family: int, size: int) -> list[tuple[Category, int]]:
    """The packs a family sells, as (category, shade index or -1): a plain one, two shades of one colour, and so on."""
    rng = stream(seed, "line-up", family)
    plain = [(category, -1) for category in rng.sample(PLAIN_CATEGORIES, len(PLAIN_CATEGORIES))]
    colours: list[tuple[Category, int]] = []
    later: list[tuple[Category, int]] = []
    for category in rng.sample(COLOUR_CATEGORIES, len(COLOUR_CATEGORIES)):
        shades = rng.sample(range(len(category.shades)), len(category.shades))
        colours += [(category, shade) for shade in shades[:2]]
        later += [(category, shade) for shade in shades[2:]]
    slots: list[tuple[Category, int]] = []
    while plain or colours:
        slots += plain[:1] + colours[:2] + plain[1:2]
        plain, colours = plain[2:], colours[2:]
    return (slots + later)[:size]


def build_shop(seed: int, num_labels: int) -> tuple[Product, ...]:
    """The shop's products, brand by brand; the label is "brand series-category( shade)".

    Args:
        seed: decides line-ups and which series words each brand owns.
        num_labels: between `MIN_LABELS` and `MAX_LABELS`; brands differ by at most one product.
    """
    num_brands = len(BRANDS) if num_labels > 12 * MAX_PRODUCTS_PER_BRAND else 4 * NUM_USED_FAMILIES
    products = []
    for number, brand in enumerate(BRANDS[:num_brands]):
        size = num_labels // num_brands + (number < num_labels % num_brands)
        series = stream(seed, "series", brand.latin).sample(list(SERIES), SERIES_PER_BRAND)
        for slot, (category, shade_index) in enumerate(_line_up(seed, brand.family, size)):
            # Half of the line-up per series, counted over the family's full size so that lookalikes agree.
            series_index = min(slot * SERIES_PER_BRAND // size, SERIES_PER_BRAND - 1)
            shade, colour = category.shades[shade_index] if shade_index >= 0 else ("", (255, 255, 255))
            name = f"{brand.latin} {series[series_index]}{category.name}"
            label = f"{name} {shade}" if shade else name
            products.append(Product(label, brand, series[series_index], series_index, category, shade, colour))
    return tuple(products)
