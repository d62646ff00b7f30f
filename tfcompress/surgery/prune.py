"""Structured pruning: choose channels by a criterion and a budget, and build the smaller network."""

from typing import NamedTuple

import keras

from tfcompress import criteria
from tfcompress.surgery import budget
from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.chooser import Chooser, fixed_counts
from tfcompress.surgery.plan import PruningPlan
from tfcompress.surgery.rebuild import rebuild
from tfcompress.surgery.sensitivity import Sensitivity


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
        scope: "layer" (the same ratio everywhere), "global" (scores of all layers compete; none is emptied), or a
            `Sensitivity` of this network: what its measured divergence makes cheapest for what it saves goes first.
            Layers that it did not measure stay whole, and are not counted by a `ratio`.
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
    if not isinstance(scope, Sensitivity) and scope not in ("layer", "global"):
        raise ValueError(f'scope must be "layer", "global" or a Sensitivity. Received: scope={scope!r:.80}')
    if isinstance(scope, Sensitivity) and not targets:
        raise ValueError(
            f"A Sensitivity as scope needs a ratio or a reduction that it is to spend. Received: {scope!r}"
        )
    if round_to < 1 or round_to != int(round_to):
        raise ValueError(f"round_to must be a positive integer. Received: round_to={round_to}")
    if ratio is not None and not graph.groups:
        raise ValueError(
            f"Model {graph.model.name!r} has no channels that may go; print(tfcompress.ChannelGraph(model)) says why "
            "each of its layers keeps all of them"
        )
    round_to = int(round_to)
    chooser = Chooser(graph, criterion, round_to)
    counts = {index: len(group) for index, group in enumerate(graph.groups)}
    fixed = fixed_counts(graph, ratios or {}, round_to)
    counts.update(fixed)
    free = [index for index in counts if index not in fixed] if targets else []
    if len(targets) > 1:
        counts = chooser.solve_both(counts, free, params_reduction, macs_reduction)
    elif ratio is not None:
        at = budget.counts_at_ratio if scope == "layer" else budget.counts_at_fraction
        counts = at(counts, chooser.steps(free, scope, "channels"), ratio)
    elif targets:
        ((target, value),) = targets.items()
        what = target.removesuffix("_reduction")
        counts = chooser.solve(counts, chooser.steps(free, scope, what), what, value)
    elif criterion.threshold is not None:
        counts = fixed
    return chooser.alive(counts), criterion


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
