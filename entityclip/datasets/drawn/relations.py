"""How a text relates to its picture: the drawn counterpart of the text-image relationship tweets.

Two labels, after Vempala and Preoţiuc-Pietro (ACL 2019). The text is *represented* if all it tells
is in the picture; the picture *adds* if it shows flags that the text does not tell of. A text tells
of the scene shown, of another scene, or talks of nothing that can be seen. Neither the text alone
nor the picture alone suffices for either label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entityclip.datasets.drawn import wording
from entityclip.datasets.drawn.countries import Country
from entityclip.datasets.drawn.scenes import SCENES


@dataclass(frozen=True)
class Relation:
    """What the text tells and the picture shows; the labels follow."""

    tells: str  # "scene": the one shown, "other": another one, "talk": nothing to be seen
    flags_shown: bool
    flags_told: bool  # only ever those shown

    @property
    def represented(self) -> bool:
        """Whether all that the text tells is in the picture."""
        return self.tells == "scene"

    @property
    def adds(self) -> bool:
        """Whether the picture shows flags that the text does not tell of."""
        return self.flags_shown and not self.flags_told

    @property
    def label(self) -> str:
        """The combined class 2 · represented + adds, ``"0"`` to ``"3"``, as of the tweets."""
        return str(2 * self.represented + self.adds)


def draw_relation(rng: np.random.Generator) -> Relation:
    """A relation; the four combined classes are equally likely."""
    represented, adds, talk, bare = (rng.random(4) < 0.5).tolist()
    tells = "scene" if represented else "talk" if talk else "other"
    if adds:
        return Relation(tells, flags_shown=True, flags_told=False)
    told = not bare and tells != "talk"  # talk names nothing that is seen
    return Relation(tells, flags_shown=told, flags_told=told)


def relation_text(
    rng: np.random.Generator,
    relation: Relation,
    countries: Sequence[Country],
    scene: str,
    time: str,
) -> str:
    """The text of a picture of `scene` at `time`, with the flags of `countries` if any is shown."""
    if relation.tells == "talk":
        return wording.talk(rng)
    if relation.tells == "other":
        others = [name for name in SCENES if name != scene]
        scene = others[int(rng.integers(len(others)))]
    if relation.flags_told:
        return wording.generic_caption(rng, countries, scene, time)
    return wording.scene_caption(rng, scene, time)
