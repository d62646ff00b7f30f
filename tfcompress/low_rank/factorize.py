"""Factorization of a network: choose ranks for a budget, and build the network of thin layers."""

import bisect
import math
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from tfcompress.graph import clone_uncompiled, is_nested_model, model_inputs, take_statistics, walk
from tfcompress.low_rank.decompose import SCHEMES, Decomposition
from tfcompress.low_rank.plan import Factor, LowRankPlan
from tfcompress.profiling import positions, profile

_SUFFIX = "_low_rank"


class Factorized(NamedTuple):
    """What `factorize` returns: the network of thin layers, and the plan of their ranks."""

    model: keras.Model
    plan: LowRankPlan


def factorize(model, *, energy=None, macs_reduction=None, params_reduction=None, ranks=None, scheme=None, skip=()):
    """Replaces dense layers and convolutions by two thin ones each, of lower rank. The result is a plain Keras model.

    A dense layer C x F becomes C x k and k x F (Denton et al. 2014, "Exploiting linear structure within convolutional
    networks for efficient evaluation"). A convolution becomes h x w with k filters and then 1 x 1 ("channel", Zhang et
    al. 2016), or h x 1 with k filters and then 1 x w ("spatial", Tai et al. 2016). The second of the two layers has the
    name, the bias and the activation of the old one; the first, named with "_low_rank" behind it, has neither of the
    last two. Constraints of the kernel fall away.

    Layers stay whole if two thin ones would cost more, and if they are grouped, depthwise, separable or transposed
    convolutions. `recalibrate` and a fine-tuning restore most of the accuracy.

    Args:
        model: a Sequential or functional Keras model. It is not changed.
        energy: fraction of its squared norm that every kernel keeps at least, in (0, 1); or:
        macs_reduction, params_reduction: fraction of the MACs or the parameters to remove, in (0, 1). The energy is
            solved for: the smallest cut at or above the target; or:
        ranks: {layer name: rank}; the other layers stay whole.
        scheme: "spatial" or "channel" for all convolutions larger than 1 x 1; None: each takes what costs less.
        skip: names of layers that stay whole.

    Returns:
        `Factorized(model, plan)`; the model is not compiled.

    Raises:
        ValueError: for bad arguments, and a target that cannot be reached.

    Example:

    ```python
    thinner, plan = factorize(model, macs_reduction=0.5)
    print(plan)
    ```
    """
    targets = {"energy": energy, "macs_reduction": macs_reduction, "params_reduction": params_reduction, "ranks": ranks}
    what, target = _given(targets)
    if scheme not in (None, *SCHEMES):
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, or None. Received: {scheme!r}")
    calls = _calls(model, skip, ranks)
    before = profile(model)
    if what == "macs_reduction" and before.macs is None:
        raise ValueError("macs_reduction needs a model with a fixed input size: its height or width is open.")
    cost = "params" if what == "params_reduction" or before.macs is None else "macs"
    candidates = {name: _Candidate(of_layer, scheme, cost) for name, of_layer in calls.items()}
    if what == "ranks":
        chosen = {name: candidates[name].at_rank(rank, name) for name, rank in ranks.items()}
    else:
        if what != "energy":
            target = _solve_energy(candidates.values(), getattr(before, cost), what, target)
        chosen = {name: candidate.at_energy(target) for name, candidate in candidates.items()}
    thinner = _build(model, {id(calls[name][0].operation): choice for name, choice in chosen.items() if choice})
    factors = {name: choice and _factor(*choice) for name, choice in chosen.items()}
    return Factorized(thinner, LowRankPlan(factors, before, profile(thinner)))


def _given(targets):
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"Give exactly one of {', '.join(targets)}. Received: {given or 'none'}")
    ((name, value),) = given.items()
    if name != "ranks" and not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1). Received: {name}={value}")
    return name, value


def _calls(model, skip, ranks):
    """{name: its calls} of the layers to choose ranks for."""
    found, names = {}, set()

    def visit(call):
        names.add(call.name)
        if _can_be_factorized(call.operation):
            found.setdefault(call.name, []).append(call)
        return [None] * len(call.outputs)

    walk(model, [None] * len(model_inputs(model)), visit)
    for name in skip:
        if name not in names:
            raise ValueError(f"skip names no layer of the model: {name!r}. There are {', '.join(names)}.")
    for name in ranks or ():
        if name not in found or name in skip:
            why = "a layer of skip" if name in skip else "a layer that cannot be factorized"
            raise ValueError(
                f"ranks names {why if name in names else 'no layer of the model'}: {name!r}. "
                f"Those that can be factorized: {', '.join(found) or 'none'}."
            )
    return {name: calls for name, calls in found.items() if name not in skip and (ranks is None or name in ranks)}


def _can_be_factorized(operation):
    return type(operation) is layers.Dense or (type(operation) is layers.Conv2D and operation.groups == 1)


class _Candidate:
    """A layer, its decompositions, and what they cost.

    Args:
        calls: all calls of the layer.
        scheme: of the decomposition; None tries each.
        cost: "params" or "macs", what the cheapest is chosen by.
    """

    def __init__(self, calls, scheme, cost):
        kernel = keras.ops.convert_to_numpy(calls[0].operation.kernel)
        self.whole = kernel.size * _uses(calls, cost)
        larger_than_1x1 = kernel.ndim == 4 and kernel.shape[:2] != (1, 1)
        schemes = [scheme] if scheme else SCHEMES
        self.decompositions = [
            (Decomposition.of(kernel, each), _cost_per_rank(calls, kernel.shape, each, cost))
            for each in (schemes if larger_than_1x1 else ["channel"])
        ]

    def at_rank(self, rank, name):
        """The cheapest (decomposition, rank) of a given rank."""
        most = max(decomposition.full_rank for decomposition, _ in self.decompositions)
        if rank != int(rank) or not 1 <= rank <= most:
            raise ValueError(f"ranks[{name!r}] must be an integer from 1 to {most}. Received: {rank}")
        possible = [pair for pair in self.decompositions if rank <= pair[0].full_rank]
        return min(possible, key=lambda pair: pair[1])[0], int(rank)

    def at_energy(self, energy):
        """The cheapest (decomposition, rank) that keeps an energy, or None if the layer itself costs no more."""
        cost, decomposition, rank = self._cheapest(energy)
        return (decomposition, rank) if cost < self.whole else None

    def removed(self, energy):
        """What is saved by keeping an energy only."""
        return max(0, self.whole - self._cheapest(energy)[0])

    def _cheapest(self, energy):
        options = [(each.rank(energy) * per_rank, each, each.rank(energy)) for each, per_rank in self.decompositions]
        return min(options, key=lambda option: option[0])


def _uses(calls, cost):
    """How often one example uses a weight of a layer, or 1 where parameters are what counts."""
    return 1 if cost == "params" else sum(positions(call) for call in calls)


def _cost_per_rank(calls, shape, scheme, cost):
    """Parameters or MACs of both factors of a kernel of this shape, for each rank."""
    *size, channels, filters = shape
    if scheme == "channel":
        return (math.prod(size) * channels + filters) * _uses(calls, cost)
    height, width = size
    if cost == "params":
        return height * channels + width * filters
    return sum(_column_positions(call) * height * channels + positions(call) * width * filters for call in calls)


def _column_positions(call):
    """The number of output pixels of the first of two spatial factors, which narrows the height only."""
    first = 2 if call.operation.data_format == "channels_first" else 1
    return call.outputs[0].shape[first] * call.inputs[0].shape[first + 1]


def _solve_energy(candidates, total, what, target):
    """The largest energy at which a fraction of the total cost is removed."""
    energies = np.unique(
        np.concatenate([each.energy for candidate in candidates for each, _ in candidate.decompositions] or [[1.0]])
    )

    def removed(index):
        return sum(candidate.removed(energies[index]) for candidate in candidates) / total

    if removed(0) < target:
        raise ValueError(f"{what}={target} cannot be reached: rank 1 everywhere removes {removed(0):.1%}.")
    at = bisect.bisect_right(range(len(energies)), -target, key=lambda index: -removed(index))
    return energies[at - 1]


def _factor(decomposition, rank):
    return Factor(decomposition.scheme, rank, decomposition.full_rank, float(decomposition.energy[rank - 1]))


def _build(model, chosen):
    """A copy of a model with the chosen layers, {id(layer): (decomposition, rank)}, in two."""
    clones, seconds = {}, {}
    names = {layer.name for layer in model._flatten_layers()}

    def clone(operation):
        if id(operation) not in clones:
            clones[id(operation)] = operation, copy(operation)
        return clones[id(operation)][1]

    def copy(operation):
        if is_nested_model(operation):
            return copy_model(operation)
        if id(operation) not in chosen:
            return type(operation).from_config(operation.get_config())
        first, second = _thin_layers(operation, *chosen[id(operation)], names)
        seconds[id(first)] = second
        return first

    def call(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        return seconds[id(operation)](outputs) if id(operation) in seconds else outputs

    def copy_model(model):
        if not isinstance(model, keras.Sequential):
            return clone_uncompiled(model, clone_function=clone, call_function=call)
        (x,) = model.inputs
        stack = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)]
        for layer in model.layers:
            stack.append(clone(layer))
            if id(stack[-1]) in seconds:
                stack.append(seconds[id(stack[-1])])
        return keras.Sequential(stack, name=model.name)

    thinner = copy_model(model)
    for old, new in clones.values():
        if id(old) in chosen:
            _assign_factors(old, new, seconds[id(new)], *chosen[id(old)])
        elif not is_nested_model(old):
            for source, target in zip(getattr(old, "variables", ()), getattr(new, "variables", ())):
                target.assign(keras.ops.convert_to_numpy(source))
    take_statistics(thinner)
    return thinner


def _thin_layers(layer, decomposition, rank, names):
    """The two layers, without their weights."""
    config = {key: value for key, value in layer.get_config().items() if not key.startswith("lora_")}
    config["kernel_constraint"] = None
    width = "units" if isinstance(layer, layers.Dense) else "filters"
    name = layer.name + _SUFFIX
    while name in names:
        name += "_"
    names.add(name)
    first = {
        **config,
        "name": name,
        width: rank,
        "use_bias": False,
        "activation": "linear",
        "activity_regularizer": None,
    }
    second = dict(config)
    if isinstance(layer, layers.Conv2D):
        for key in ("kernel_size", "strides", "dilation_rate"):
            height, width = config[key]
            first[key], second[key] = (
                ((height, width), (1, 1)) if decomposition.scheme == "channel" else ((height, 1), (1, width))
            )
    return type(layer).from_config(first), type(layer).from_config(second)


def _assign_factors(old, first, second, decomposition, rank):
    for layer, kernel in zip((first, second), decomposition.factors(rank)):
        layer.kernel.assign(kernel)
    if old.use_bias:
        second.bias.assign(keras.ops.convert_to_numpy(old.bias))
