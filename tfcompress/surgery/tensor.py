"""What the walk knows of a tensor."""

from dataclasses import dataclass

import numpy as np

FROZEN = 0  # the id of every channel that is never removed because nothing is known of it


@dataclass(frozen=True)
class Tensor:
    """A tensor as the walk sees it.

    Attributes:
        shape: its shape, batch included.
        axis: the axis along which channels can be removed, or None if no channel of this tensor can be.
        ids: one id per position of that axis.
        quiet: whether a channel whose producer is silenced reads zero here. Behind a sigmoid it does not.
    """

    shape: tuple
    axis: int | None = None
    ids: np.ndarray | None = None
    quiet: bool = True
