"""Which channels a criterion keeps, and how many of each group a budget leaves."""

import numpy as np

from tfcompress.surgery import budget
from tfcompress.surgery.matrices import matrices

LEAST_KEPT = 1 / 4  # of what a group would keep at one ratio for all, where ratios run over depth


class Chooser:
    """Applies a criterion to the groups of a graph."""

    def __init__(self, graph, criterion, round_to):
        self.graph, self.criterion, self.round_to = graph, criterion, round_to
        self.matrices = matrices(graph, criterion)

    def steps(self, free, scope, what):
        """The steps in which the free groups shrink, to save "macs", "params" or "channels"."""
        if scope == "layer":
            return budget.steps_by_ratio(self.graph.groups, free, self.round_to)
        if scope == "global":
            scores = {index: self._comparable_scores(index) for index in free}
            return budget.steps_by_score(scores, free, self.round_to)
        return self._steps_by_damage(free, scope.divergence, what)

    def _steps_by_damage(self, free, curves, what):
        for name in curves:
            self.graph.check_layer("the sensitivity given as scope", name)
        everything = {index: len(group) for index, group in enumerate(self.graph.groups)}
        reduction = (lambda counts: -sum(counts.values())) if what == "channels" else self._reduction(what)
        measured, savings = {}, dict.fromkeys(curves, 0.0)
        for index in free:
            name = next((name for name in self.graph.groups[index].positions if name in curves), None)
            size = everything[index]
            if name is None or size == 1:
                continue
            measured[index] = name
            saved = reduction({**everything, index: 1}) - reduction(everything)
            savings[name] += saved * size / (size - 1)
        # What a layer's groups lose together, they were measured to lose together.
        return budget.steps_by_damage(
            self.graph.groups,
            {index: curves[name] for index, name in measured.items()},
            {index: savings[name] for index, name in measured.items()},
            self.round_to,
        )

    def solve(self, counts, steps, what, target):
        """The counts that reach a reduction of "macs" or "params"."""
        reduction = self._reduction(what)
        exact = self.round_to == 1
        solved = budget.solve(counts, steps, reduction, target, exact)
        if target <= reduction(solved, self.alive) <= (target + budget.TOLERANCE if exact else 1):
            return solved
        # Channels of one group can have different consumers; then the cut depends on which of them go.
        return budget.solve(counts, steps, lambda counts: reduction(counts, self.alive), target, exact)

    def solve_both(self, counts, free, params, macs):
        """The counts that reach a reduction of the parameters and one of the MACs, with ratios linear over depth.

        No group keeps less than a part of what it would keep at one ratio for all.
        """
        cuts = self._reduction("params"), self._reduction("macs")
        # As in `solve`, which channels go can matter: then they are chosen for every line that is tried.
        for alive in (self._first, self.alive):
            solved = self._on_line(
                counts, free, params, macs, lambda line, alive=alive: [cut(line, alive) for cut in cuts]
            )
            reached = [cut(solved, self.alive) for cut in cuts]
            if reached[0] >= params and reached[1] >= macs:
                return solved
        raise ValueError(
            f"Reductions of {params:.1%} of the parameters and {macs:.1%} of the MACs were not reached: "
            f"{reached[0]:.1%} and {reached[1]:.1%}. Ask for a little more."
        )

    def _on_line(self, counts, free, params, macs, cuts):
        least = 0.0

        def on_line(front, back):
            return budget.counts_on_line(counts, self.graph.groups, free, self.round_to, front, back, least)

        def cuts_on_line(front, back):
            return cuts(on_line(front, back))

        most = cuts_on_line(0, 0)
        if most[0] < params or most[1] < macs:
            raise ValueError(
                f"Reductions of {params:.1%} of the parameters and {macs:.1%} of the MACs cannot be reached: the most "
                f"is {most[0]:.1%} and {most[1]:.1%}."
            )
        flat = budget.solve_level(lambda kept: cuts_on_line(kept, kept), params, macs, low=0, high=1)
        least = LEAST_KEPT * flat
        return on_line(*budget.solve_line(cuts_on_line, params, macs, low=0, high=1))

    def _reduction(self, what):
        """A function of counts, and of how channels are chosen: the fraction of "macs" or "params" removed."""
        everything = getattr(self.graph.cost(np.ones(len(self.graph.frozen), bool)), what)
        if everything is None:
            raise ValueError("macs_reduction needs a model with a fixed input size: its height or width is open.")
        if not everything:
            raise ValueError(
                f"There are no {what} to remove: {self.graph.model.name!r} has no convolutions or dense layers that "
                "are counted; within TimeDistributed and recurrent layers none are."
            )

        def reduction(counts, alive=self._first):
            return 1 - getattr(self.graph.cost(alive(counts)), what) / everything

        return reduction

    def alive(self, counts):
        """The classes that stay when each group keeps its count by the criterion; without a count, by its threshold."""
        alive = np.ones(len(self.graph.frozen), bool)
        for index, group in enumerate(self.graph.groups):
            if counts.get(index, 0) == len(group):
                continue
            matrix = self.matrices(group, alive if self.criterion.front_to_back else None)
            count = counts[index] if index in counts else self._count_at_threshold(matrix)
            alive[group.classes] = False
            alive[group.classes[self._keep(matrix, count)]] = True
        return alive

    def _keep(self, matrix, count):
        kept = np.asarray(self.criterion.keep(matrix, count))
        if len(np.unique(kept)) != count or not np.all((kept >= 0) & (kept < len(matrix))):
            raise ValueError(
                f"The criterion {self.criterion.name!r} must keep {count} different filters of {len(matrix)}. "
                f"Received: {kept.tolist()}"
            )
        return kept

    def _count_at_threshold(self, matrix):
        allowed = budget.allowed_counts(len(matrix), self.round_to)
        wanted = self.criterion.count(matrix)
        return min(allowed, key=lambda count: abs(count - wanted))

    def _first(self, counts):
        """The classes that stay when each group keeps its first channels: same widths as `alive`, but fast."""
        alive = np.ones(len(self.graph.frozen), bool)
        for index, group in enumerate(self.graph.groups):
            alive[group.classes[counts[index] :]] = False
        return alive

    def _comparable_scores(self, index):
        scores = self.criterion.checked_scores(self.matrices(self.graph.groups[index], None))
        if self.criterion.comparable:
            return scores
        if scores.min() < 0:
            raise ValueError(
                f'With scope="global", scores are divided by the mean of their layer: those of {self.criterion.name!r} '
                f"must not be negative (or comparable=True). Received: {scores.min():g}"
            )
        return scores / max(scores.mean(), 1e-12)


def fixed_counts(graph, ratios, round_to):
    """{group index: channels kept} of the groups that `ratios` decides: of coupled layers, the first that is named."""
    for name, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise ValueError(f"ratios[{name!r}] must be in [0, 1). Received: {ratio}")
        graph.check_layer("ratios", name)
    counts, decides = {}, set()
    for index, group in enumerate(graph.groups):
        named = [name for name in group.positions if name in ratios]
        if named:
            decides.add(named[0])
            steps = budget.steps_by_ratio(graph.groups, [index], round_to)
            counts.update(budget.counts_at_ratio({index: len(group)}, steps, ratios[named[0]]))
    for name in set(ratios) - decides:
        _check_decided(graph, ratios, name)
    return counts


def _check_decided(graph, ratios, name):
    """Refuses a ratio that decides nothing, unless the layers that it is coupled to say the same or it is zero."""
    groups = [group for group in graph.groups if name in group.positions]
    if not groups and ratios[name] > 0:
        raise ValueError(f"ratios names a layer without channels that can be removed: {name!r}.")
    for group in groups:
        first = next(other for other in group.positions if other in ratios)
        if ratios[first] != ratios[name]:
            raise ValueError(f"ratios gives coupled layers different ratios: {first!r} and {name!r}.")
