"""Structured pruning: choose channels by a criterion and a budget, and build the smaller network."""

from typing import NamedTuple

import keras
import numpy as np

from tfcompress import criteria
from tfcompress.surgery import budget
from tfcompress.surgery.channel_graph import ChannelGraph, no_such_layer
from tfcompress.surgery.matrices import matrices
from tfcompress.surgery.plan import PruningPlan
from tfcompress.surgery.rebuild import rebuild

LEAST_KEPT = 1 / 4  # of what a group would keep at one ratio for all, where ratios run over depth


class Pruned(NamedTuple):
    """What `prune_channels` returns: the smaller model and the plan that led to it."""

    model: keras.Model
    plan: PruningPlan


def prune_channels(
    model,
    criterion="l1",
    *,
    ratio=None,
    macs_reduction=None,
    params_reduction=None,
    scope="layer",
    round_to=1,
    skip=(),
    ratios=None,
):
    """Removes channels from a network. The result is a plain Keras model that is really smaller.

    A removed channel is read as zero by every layer that consumed it. Where it would not be zero when its producer is
    silenced (behind a sigmoid, say), it is not removed.

    Args:
        model: a Sequential or functional Keras model. It is not changed.
        criterion: a name in `tfcompress.criteria.REGISTRY`, or a `Criterion`.
        ratio: fraction of the channels of every group to remove (with `scope="global"`, of all of them), in (0, 1).
        macs_reduction, params_reduction: fraction of the MACs or the parameters to remove, in (0, 1). The ratio (or
            global threshold) is solved for: the smallest cut at or above the target, at most one point above it;
            ties are broken layer by layer. With `round_to` > 1, widths are coarse: it is the first cut at or above
            the target, which in a narrow network can be several points above. With both targets the ratio runs
            linearly from the first group to the last, no steeper than it must for both to be reached: a file as small
            and as fast as wanted. What one target takes along of the other, beyond what a line can spare, is lost, too.
            Where `ratios` alone remove more, nothing else goes.
        scope: "layer" (the same ratio everywhere) or "global" (scores of all layers compete; none is emptied).
        round_to: a group that gets narrower keeps a multiple of this, where it is at least that wide.
        skip: names of layers whose output channels are all kept.
        ratios: {layer name: fraction to remove, in [0, 1)}, overrides for these layers and those coupled to them (of
            coupled layers, the first that is named decides). Alone, it prunes only these. `Sensitivity.ratios`
            measures them.

    Returns:
        `Pruned(model, plan)`.

    Raises:
        UnsupportedLayerError: for a layer that surgery does not know.
        ValueError: for bad arguments, and a target that cannot be reached.

    Example:

    ```python
    smaller, plan = prune_channels(model, "l2", macs_reduction=0.5, round_to=8)
    print(plan)
    ```
    """
    graph = ChannelGraph(model, skip)
    alive, criterion = _choose(graph, criterion, ratio, macs_reduction, params_reduction, scope, round_to, ratios)
    return Pruned(rebuild(graph, alive), PruningPlan.of(graph, alive, criterion.name))


def plan_pruning(
    model,
    criterion="l1",
    *,
    ratio=None,
    macs_reduction=None,
    params_reduction=None,
    scope="layer",
    round_to=1,
    skip=(),
    ratios=None,
):
    """Plans what `prune_channels` would do, with the costs it would reach, without building anything.

    Args: as `prune_channels`.

    Returns:
        A `PruningPlan`.
    """
    graph = ChannelGraph(model, skip)
    alive, criterion = _choose(graph, criterion, ratio, macs_reduction, params_reduction, scope, round_to, ratios)
    return PruningPlan.of(graph, alive, criterion.name)


def _choose(graph, criterion, ratio, macs_reduction, params_reduction, scope, round_to, ratios):
    """Which classes of the graph stay alive: (classes,) bool; and the criterion object."""
    targets = {"ratio": ratio, "macs_reduction": macs_reduction, "params_reduction": params_reduction}
    criterion = criteria.get(criterion)
    targets = _given(targets, ratios, criterion, scope)
    if scope not in ("layer", "global"):
        raise ValueError(f'scope must be "layer" or "global". Received: scope={scope!r}')
    if round_to < 1 or round_to != int(round_to):
        raise ValueError(f"round_to must be a positive integer. Received: round_to={round_to}")
    if ratio is not None and not graph.groups:
        raise ValueError(
            f"Model {graph.model.name!r} has no channels that may go; print(tfcompress.ChannelGraph(model)) says why "
            "each of its layers keeps all of them"
        )
    round_to = int(round_to)
    chooser = _Chooser(graph, criterion, round_to)
    counts = {index: len(group) for index, group in enumerate(graph.groups)}
    fixed = _fixed_counts(graph, ratios or {}, round_to)
    counts.update(fixed)
    free = [index for index in counts if index not in fixed] if targets else []
    if len(targets) > 1:
        counts = chooser.solve_both(counts, free, params_reduction, macs_reduction)
    elif ratio is not None:
        at = budget.counts_at_ratio if scope == "layer" else budget.counts_at_fraction
        counts = at(counts, chooser.steps(free, scope), ratio)
    elif targets:
        ((target, value),) = targets.items()
        counts = chooser.solve(counts, chooser.steps(free, scope), target.removesuffix("_reduction"), value)
    elif criterion.threshold is not None:
        counts = fixed
    return chooser.alive(counts), criterion


class _Chooser:
    """Applies a criterion to the groups of a graph."""

    def __init__(self, graph, criterion, round_to):
        self.graph, self.criterion, self.round_to = graph, criterion, round_to
        self.matrices = matrices(graph, criterion)

    def steps(self, free, scope):
        """The steps in which the free groups shrink."""
        if scope == "layer":
            return budget.steps_by_ratio(self.graph.groups, free, self.round_to)
        scores = {index: self._comparable_scores(index) for index in free}
        return budget.steps_by_score(scores, free, self.round_to)

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
                f"There are no {what} to remove: {self.graph.model.name!r} has neither convolutions nor dense layers."
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


def _given(targets, ratios, criterion, scope):
    """The targets given, {name: value}: one, both reductions, or none if `ratios` or a threshold decide alone."""
    given = {name: value for name, value in targets.items() if value is not None}
    if given and criterion.threshold is not None:
        raise ValueError(f"A criterion with a threshold needs no {next(iter(given))}: give one of the two.")
    both = len(given) == 2 and "ratio" not in given
    if (len(given) > 1 and not both) or (not given and ratios is None and criterion.threshold is None):
        raise ValueError(f"Give exactly one of {', '.join(targets)}, or both reductions. Received: {given or 'none'}")
    if both and scope != "layer":
        raise ValueError(f'Two reductions at once need scope="layer". Received: scope={scope!r}')
    for name, value in given.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1). Received: {name}={value}")
    return given


def _fixed_counts(graph, ratios, round_to):
    """{group index: channels kept} of the groups that `ratios` decides: of coupled layers, the first that is named."""
    names = [name for name, _ in graph.layers.values()]
    for name, ratio in ratios.items():
        if not 0 <= ratio < 1:
            raise ValueError(f"ratios[{name!r}] must be in [0, 1). Received: {ratio}")
        if name not in names:
            raise ValueError(no_such_layer("ratios", name, names))
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
