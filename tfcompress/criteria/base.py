"""What a criterion is: numbers in, kept channels out. It knows nothing of Keras."""

import numpy as np


class Criterion:
    """Chooses which of N filters to keep.

    Attributes:
        name: its name in the registry.
        reads: what the rows of its matrix are: "filters" (all kernel weights of each coupled channel), "gamma" (one
            column, the mean |gamma| of the BatchNorms it passes) or "taylor" (one column per batch of data, the sum
            of weight times gradient).
        comparable: whether scores of different layers can be compared as they are; if not, a global scope divides
            them by their layer's mean.
        threshold: if not None, the criterion decides the number of filters itself, by `count`.
        front_to_back: whether each layer is judged as already sliced by the layers before it.
    """

    name = ""
    reads = "filters"
    comparable = False
    threshold = None
    front_to_back = False

    def scores(self, filters):
        """Importance of each filter: (N, d) to (N,), larger is more important.

        Raises:
            ValueError: if the criterion chooses sets, which have no scores.
        """
        raise ValueError(f"The criterion {self.name!r} chooses a set for each layer: it has no scores to compare.")

    def checked_scores(self, filters):
        """What `scores` returns, as float64 (N,).

        Raises:
            ValueError: that is not one finite number for each filter.
        """
        scores = np.asarray(self.scores(filters), float)
        if scores.shape != (len(filters),) or not np.isfinite(scores).all():
            raise ValueError(
                f"The criterion {self.name!r} must return a finite score for each of {len(filters)} filters. Received: "
                f"shape {scores.shape}" + ("" if np.isfinite(scores).all() else ", NaN or infinity among them")
            )
        return scores

    def keep(self, filters, count):
        """The indices of the `count` filters to keep, ascending. Ties go to the earlier filter."""
        order = np.argsort(-self.checked_scores(filters), kind="stable")
        return np.sort(order[:count])

    def count(self, filters):
        """How many filters to keep at the criterion's own threshold: (N, d) to an integer in 1..N."""
        raise NotImplementedError(f"The criterion {self.name!r} has a threshold, but no method count(filters).")
