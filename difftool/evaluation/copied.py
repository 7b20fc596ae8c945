"""Samples and the training items that are nearest to them: what is recorded of them, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from difftool.data.forms import NOUNS
from difftool.errors import printable, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from difftool.data.samples import Samples
    from difftool.evaluation.copies import Copies

LONGEST_CAPTION = 40


@dataclass(frozen=True, eq=False)
class Copied:
    """The nearness of samples to training items, with the pairs that are nearest to each other."""

    copies: Copies
    train: Samples
    items: Tensor
    """(P, *shape), the samples of the pairs in data units."""

    @property
    def words(self) -> str:
        return self.copies.words(NOUNS.get(self.train.form or "array", "items"))

    @property
    def ids(self) -> Sequence[str]:
        """The names of the training items of the pairs, or their numbers where they have no names."""
        names, pairs = self.train.item_ids, self.copies.nearest
        return [str(pair.item) if names is None else names[pair.item] for pair in pairs]

    def document(self) -> dict[str, Any]:
        """Return plain values, as evaluations.jsonl holds them."""
        found = self.copies
        pairs = zip(found.nearest, self.ids, strict=True)
        return {
            "verdict": found.verdict,
            "words": self.words,
            "share": found.share.value,
            "expected": found.share.expected,
            "limit": found.share.limit,
            "quantile": found.quantile,
            "closest": found.closest.value,
            "identical": found.identical.value,
            "n": found.n,
            "unseen": found.unseen,
            "baseline": found.baseline,
            "nearest": [
                {
                    "sample": pair.sample,
                    "item": pair.item,
                    "id": name,
                    "distance": pair.distance,
                    "relative": pair.relative,
                }
                for pair, name in pairs
            ],
        }

    def figure(self, title: str) -> Figure | None:
        """Draw the pairs, or return None for items of a form that is not drawn."""
        from difftool.figures.pairs import Pairs

        scaling, chosen = self.train.scaling, [pair.item for pair in self.copies.nearest]
        captions = [
            pair.caption(shortened(printable(name), LONGEST_CAPTION))
            for pair, name in zip(self.copies.nearest, self.ids, strict=True)
        ]
        pairs = Pairs(
            x=scaling.to_model(self.items),
            scaling=scaling,
            title=title,
            form=self.train.form,
            rate=self.train.rate,
            items=scaling.to_model(self.train.take_items(chosen)),
            captions=captions,
        )
        return pairs.figure()
