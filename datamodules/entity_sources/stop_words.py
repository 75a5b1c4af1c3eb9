"""Words of sellers and of grammar that name no brand, product or property. Short on purpose: see `MiningRules`."""

from __future__ import annotations

# Phrases that part a caption like punctuation: offers, service, shop, cross-selling, and words that join phrases.
MARKETING = (
    # offers and delivery
    "包邮", "顺丰", "特价", "促销", "清仓", "秒杀", "优惠", "优惠券", "打折", "折扣", "满减", "买一送一", "买二送一",
    "赠品", "赠送", "附赠", "送礼", "免运费", "团购", "批发", "代发", "一件代发", "厂家直销", "厂家", "直销", "厂价",
    "工厂店",
    "best price", "special offer", "free delivery", "free shipping", "on sale", "discount", "clearance", "deal",
    "while stocks last", "limited offer", "buy one get one", "wholesale",
    # shop, origin of the goods, promises
    "官方", "官网", "官方旗舰店", "旗舰店", "旗舰", "专卖店", "专卖", "专营店", "专营", "专柜", "代购", "直邮",
    "香港直邮", "保税", "现货", "预售", "正品", "正版", "原装", "行货", "保真", "假一罚十", "授权", "国内", "淘宝",
    "天猫", "京东",
    "official", "store", "authentic", "genuine", "in stock", "online only", "guaranteed", "top quality",
    # praise and novelty
    "新款", "新品", "上新", "热卖", "热销", "爆款", "网红", "抖音", "同款", "明星同款", "推荐", "超值", "必备", "神器",
    "限量", "限量版", "限定", "高档", "高级感", "高端", "优质", "特惠", "小众", "国货", "爆炸", "人气",
    "new in", "new arrival", "new arrivals", "hot", "best seller", "bestseller", "must have", "limited edition",
    # cross-selling
    "搭配", "另有", "另售", "goes well with", "see also", "combine with", "others bought", "comes with", "not",
    # grammar
    "and", "with", "for", "in", "on", "to", "by", "from", "or", "is", "are", "it", "its", "this", "that", "your", "you",
    "be",
    "was", "has", "have", "as", "at", "but", "if", "so", "than", "which", "will", "can", "all", "no", "also", "more",
    "most",
    "very", "often", "always", "used",
)  # fmt: skip

# Words that may stand inside a name (united colors of benetton) but neither begin nor end one.
INNER_ONLY = frozenset(
    ("of", "the", "a", "an", "&", "de", "la", "le", "du", "的", "送", "赠", "之", "与", "和", "及", "了", "在")
)
