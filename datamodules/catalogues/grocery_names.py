"""What captions may say of a grocery class: its name, coarser names, words of its description."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

_STOPWORDS = (
    "a about all also although an and are around as at away be been being both but by called can cold could down "
    "during each either etc even ever every example few first fits fit for from gives good great had has have "
    "hence his how i if in into is it its itself just keep kept known like made mainly makes making many may "
    "means more most much must never not of often on one only or other otherwise our out over per rather really "
    "same several should side since so some somewhat still such suits suitable than that the their them then "
    "there these they this those though through time to too under up usually varieties variety very want way well "
    "when where which while who will with without you your works reminds recognized special"
)
STOPWORDS = frozenset(_STOPWORDS.split())


class GroceryClass(NamedTuple):
    """One fine class, with both manners of naming it (see `compose_captions.Naming`)."""

    label: str  # as in classes.csv, e.g. Golden-Delicious
    coarse: str  # e.g. Apple
    aisle: str  # fruit, vegetable or package
    details: tuple[str, ...]  # words of the description that are not in the name

    @property
    def name(self) -> str:
        return self.label.replace("-", " ")

    def _details(self, rng: random.Random, least: int, most: int) -> list[str]:
        number = min(len(self.details), rng.randint(least, most))
        return rng.sample(self.details, number)

    def exact(self, rng: random.Random) -> str:
        return " ".join([*self._details(rng, 0, 2), self.name])

    def vague(self, rng: random.Random) -> str:
        """A coarser name and one to three words of the description."""
        kinds = [self.aisle]
        coarse = self.coarse.replace("-", " ")
        if coarse != self.name:
            kinds += [coarse, coarse]
        words = self.name.split()
        if self.aisle == "package" and len(words) > 2:
            kinds += [f"{words[0]} {coarse}", " ".join(words[1:])]
        kinds = [kind for kind in kinds if self.name not in kind]
        return " ".join([*self._details(rng, 1, 3), rng.choice(kinds).lower()])


def describe(label: str, coarse: str, aisle: str, description: str) -> GroceryClass:
    """Builds a class from its row of classes.csv, its folder and its description file.

    The description loses function words and every word of the name, in the plural too: what is left can be said
    without giving the name away.
    """
    own = {word for part in (label, coarse) for word in re.findall(r"[a-z]+", part.lower())}
    own |= {word + ending for word in own for ending in ("s", "es")} | {word.removesuffix("s") for word in own}
    words = re.findall(r"[a-zé]{3,}", description.lower())
    kept = dict.fromkeys(word for word in words if word not in STOPWORDS and word not in own)
    return GroceryClass(label, coarse, aisle, tuple(kept))
