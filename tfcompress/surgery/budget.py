"""How many channels each group keeps: a ratio, or the smallest cut that reaches a target."""

import itertools
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.01  # a solved cut is at most this far above its target
RESOLUTION = 1 / 512  # of a line over depth
TILT = 3  # the steepest line rises by so many times the range of its values


@dataclass(frozen=True)
class Step:
    """One step of a shrinking network: a group goes down to `count` channels."""

    key: float  # steps are taken in ascending order of key: a ratio, or the score of what goes
    group: int
    count: int


def allowed_counts(size, round_to):
    """The numbers of channels that a group may keep, descending from all of them."""
    counts = range(size // round_to * round_to, 0, -round_to)
    return [size, *(count for count in counts if count < size)]


def steps_by_ratio(groups, free, round_to):
    """The steps of a uniform ratio: each group changes where the ratio passes the middle between two counts.

    Args:
        groups: the groups of the graph.
        free: indices of the groups that may shrink.
        round_to: what the kept numbers of channels are multiples of.
    """
    steps = []
    for index in free:
        size = len(groups[index])
        counts = allowed_counts(size, round_to)
        steps += [Step(1 - (a + b) / (2 * size), index, b) for a, b in itertools.pairwise(counts)]
    return sorted(steps, key=lambda step: step.key)


def steps_by_score(scores, free, round_to):
    """The steps of a global threshold on the scores: a group shrinks when the last of the channels that go is below.

    Args:
        scores: {group index: (N,) scores}.
        free: indices of the groups that may shrink.
        round_to: what the kept numbers of channels are multiples of.
    """
    steps = []
    for index in free:
        ascending = np.sort(scores[index])
        counts = allowed_counts(len(ascending), round_to)
        steps += [Step(float(ascending[len(ascending) - count - 1]), index, count) for count in counts[1:]]
    return sorted(steps, key=lambda step: step.key)


def steps_by_damage(groups, curves, savings, round_to):
    """The steps of least damage for what they save, by curves of the damage that each group's pruning alone does.

    A curve is read as its lower convex hull, on which every further channel of a group does at least the damage of the
    one before. Beyond the last measured fraction all other steps come first.

    Args:
        groups: the groups of the graph.
        curves: {index of a group that may shrink: {ratio: damage}}.
        savings: {group index: what the network saves with all channels of the group removed, and of those that were
            pruned together with it}.
        round_to: what the kept numbers of channels are multiples of.
    """
    steps = []
    for index, curve in curves.items():
        size = len(groups[index])
        by_one = steps_by_ratio(groups, [index], 1)
        points = {counts_at_ratio({index: size}, by_one, ratio)[index]: curve[ratio] for ratio in sorted(curve)}
        points[size] = 0.0
        counts, damages = lower_hull(sorted(points.items()))
        key = 0.0
        for a, b in itertools.pairwise(allowed_counts(size, round_to)):
            damage = np.subtract(*np.interp([b, a], counts, damages)) if b >= counts[0] else np.inf
            # The keys of a convex curve ascend, but for rounding.
            key = max(key, float(damage) * size / (savings[index] * (a - b)))
            steps.append((1 - (a + b) / (2 * size), Step(key, index, b)))
    # Of equal ones, the least that its group has lost.
    return [step for _, step in sorted(steps, key=lambda item: (item[1].key, item[0]))]


def lower_hull(points):
    """The x and the y of the vertices of the lower convex hull of points in ascending order of x."""
    hull = []
    for x, y in points:
        while len(hull) > 1 and _slope(*hull[-2], *hull[-1]) >= _slope(*hull[-1], x, y):
            hull.pop()
        hull.append((x, y))
    return np.transpose(hull)


def _slope(x, y, next_x, next_y):
    return (next_y - y) / (next_x - x)


def counts_at_ratio(counts, steps, ratio):
    """The counts after all steps up to a ratio."""
    counts = dict(counts)
    for step in steps:
        if step.key <= ratio + 1e-9:
            counts[step.group] = step.count
    return counts


def counts_at_fraction(counts, steps, ratio):
    """The counts at which this fraction of all channels of the groups in `steps` is gone, to the nearest step."""
    counts = dict(counts)
    total = sum(counts[group] for group in {step.group for step in steps})
    to_remove = ratio * total
    for step in steps:
        removes = counts[step.group] - step.count
        if removes > 2 * to_remove:
            break
        to_remove -= removes
        counts[step.group] = step.count
    return counts


def solve(counts, steps, reduction, target, exact=True):
    """The shortest sequence of steps whose reduction reaches a target.

    Args:
        counts: {group: channels} before any step.
        steps: list of `Step`, in the order in which they are taken.
        reduction: function of counts, the fraction of MACs or parameters removed.
        target: the fraction to remove.
        exact: whether the result must be at most `TOLERANCE` above the target, unless no step is needed.

    Returns:
        The counts.

    Raises:
        ValueError: if the target cannot be reached, or not that closely.
    """
    taken = _shortest(counts, steps, reduction, target)
    if taken is None:
        most = reduction(_after(counts, steps))
        raise ValueError(f"A reduction of {target:.1%} cannot be reached: the most is {most:.1%}.")
    result = _after(counts, steps[:taken])
    if not exact or not taken or reduction(result) <= target + TOLERANCE:
        return result
    return _fill(_after(counts, steps[: taken - 1]), steps[taken - 1 :], reduction, target)


def counts_on_line(counts, groups, free, round_to, front, back, least=0.0):
    """The counts where the fraction kept runs linearly over the free groups, to the nearest step.

    Args:
        counts: {group: channels} before.
        groups: the groups of the graph.
        free: indices of the groups that may shrink, front to back.
        round_to: what the kept numbers of channels are multiples of.
        front, back: fraction kept of the first and of the last of them; what lies outside [least, 1] is clipped.
        least: the fraction that every group keeps.
    """
    counts = dict(counts)
    for kept, index in zip(np.linspace(front, back, len(free)), free):
        size = len(groups[index])
        counts[index] = min(allowed_counts(size, round_to), key=lambda count: abs(count - max(kept, least) * size))
    return counts


def solve_line(cuts, params, macs, low, high):
    """The flattest line over depth at which two cuts are reached, and neither exceeds its target more than it must.

    Late layers hold the parameters, early ones the MACs: where a flat line that reaches one cut exceeds the other, a
    tilted one spares the layers that hold what was cut too much.

    Args:
        cuts: function of the line's first and last value; returns the fractions of the parameters and of the MACs that
            are removed, which fall in both, and change no more outside [low, high].
        params, macs: the fractions to remove; at `low` everywhere they are reached.
        low, high: bounds of the line's useful values.

    Returns:
        The first and the last value.
    """

    def highest(line, low, high):
        return solve_level(lambda x: cuts(*line(x)), params, macs, low, high)

    def ends(tilt):
        rise = abs(tilt) / 2
        level = highest(lambda x: (x - tilt / 2, x + tilt / 2), low - rise, high + rise)
        return level - tilt / 2, level + tilt / 2

    def imbalance(tilt):
        removed = cuts(*ends(tilt))
        return (removed[0] - params) - (removed[1] - macs)

    up = 1 if imbalance(0) > 0 else -1
    steepest = TILT * (high - low)
    enough = max(up * imbalance(up * steepest) + TOLERANCE, 0)
    # The steepest line is balanced well enough; the flattest such line is the other end of the bisection.
    flatness = _highest(lambda flat: up * imbalance(up * (steepest - flat)) <= enough, 0, steepest)
    front, back = ends(up * (steepest - flatness))
    # Where counts are coarse, one end can still rise a little.
    back = highest(lambda x: (front, x), back, back + (high - low))
    return highest(lambda x: (x, back), front, front + (high - low)), back


def solve_level(cuts, params, macs, low, high):
    """The highest number in [low, high] at which the cuts of parameters and MACs, both falling, reach their targets."""

    def reached(level):
        removed = cuts(level)
        return removed[0] >= params and removed[1] >= macs

    return _highest(reached, low, high)


def _highest(reaches, low, high):
    """The highest number that `reaches`, as all lower ones do, by bisection."""
    if reaches(high):
        return high
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


def _shortest(counts, steps, reduction, target):
    """Number of steps needed, by bisection, or None."""
    low, high = 0, len(steps)
    if reduction(_after(counts, steps)) < target:
        return None
    while low < high:
        middle = (low + high) // 2
        if reduction(_after(counts, steps[:middle])) >= target:
            high = middle
        else:
            low = middle + 1
    return low


def _fill(counts, steps, reduction, target):
    """Takes further steps in order, passing over the groups whose next channel goes too far, until the target."""
    too_wide, least_above = set(), np.inf
    for step in steps:
        if step.group in too_wide:
            continue
        candidate = {**counts, step.group: step.count}
        reached = reduction(candidate)
        if reached > target + TOLERANCE:
            too_wide.add(step.group)
            least_above = min(least_above, reached)
        elif reached >= target:
            return candidate
        else:
            counts = candidate
    raise ValueError(
        f"A reduction of {target:.1%} cannot be reached to within {TOLERANCE:.0%}: one channel less leads from "
        f"{reduction(counts):.1%} to {least_above:.1%}. Ask for one of these."
    )


def _after(counts, steps):
    return {**counts, **{step.group: step.count for step in steps}}
