"""Which layers are factorized, and what that saves."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tfcompress.profiling import Profile, cost_table, removed, table


class Factor(NamedTuple):
    """How one layer is factorized.

    Attributes:
        scheme: "spatial" or "channel"; dense layers and 1x1 convolutions know the second only.
        rank: channels between the two thin layers.
        full_rank: the rank at which nothing is lost.
        energy: fraction of the kernel's squared norm that is kept, in [0, 1].
    """

    scheme: str
    rank: int
    full_rank: int
    energy: float


@dataclass(frozen=True)
class LowRankPlan:
    """A factorization of a network; `str()` is a table.

    Attributes:
        factors: {layer name: `Factor`, or None where the layer stays whole, as two thin ones would not cost less}.
        before, after: `Profile` of the network.
    """

    factors: dict = field(hash=False)
    before: Profile
    after: Profile

    @property
    def params_reduction(self):
        """Fraction of the parameters removed."""
        return removed(self.before.params, self.after.params)

    @property
    def macs_reduction(self):
        """Fraction of the MACs removed, or None if the spatial size is open."""
        return None if self.before.macs is None else removed(self.before.macs, self.after.macs)

    def __str__(self):
        rows = [
            (name, factor.scheme, f"{factor.rank:,}", f"{factor.full_rank:,}", f"{factor.energy:.2%}")
            if factor
            else (name, "whole", "", "", "")
            for name, factor in self.factors.items()
        ]
        costs = [("parameters", self.before.params, self.after.params), ("MACs", self.before.macs, self.after.macs)]
        header = ("layer", "scheme", "rank", "full rank", "energy")
        return f"{table(header, rows)}\n\n{cost_table('cost', costs)}"
