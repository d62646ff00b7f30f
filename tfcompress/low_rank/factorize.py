"""Factorization of a network: choose ranks for a budget, and build the network of thin layers."""

import bisect
import math
import numbers
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from tfcompress.errors import UnsupportedLayerError
from tfcompress.graph import (
    clone_uncompiled,
    config_of,
    copy_frozen,
    copy_operation,
    copy_trainable,
    is_nested_model,
    model_inputs,
    paired_variables,
    take_statistics,
    walk,
)
from tfcompress.low_rank.decompose import SCHEMES, energies, factors, rank_at
from tfcompress.low_rank.plan import Factor, LowRankPlan
from tfcompress.profiling import positions, profile
from tfcompress.surgery.channel_graph import as_skip, check_skip, is_skipped, no_such_layer

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
    name, the bias and the activation of the old one; the first, named with "_low_rank" behind it, has no bias and no
    activation. A regularizer of the kernel holds for both, a constraint for none.

    Only `keras.layers.Dense` and ungrouped `Conv2D` are factorized, and of these only layers of which two thin ones
    have fewer parameters and fewer MACs. `recalibrate` and a fine-tuning restore most of the accuracy.

    Args:
        model: a Sequential or functional Keras model. It is not changed.
        energy: fraction of its squared norm that every kernel keeps at least, in (0, 1); or:
        macs_reduction, params_reduction: fraction of the MACs or the parameters to remove, in (0, 1). The energy is
            solved for, one for all layers: the smallest cut at or above the target; or:
        ranks: {layer name: rank}. These layers are replaced, whatever it costs; the others stay whole.
        scheme: "spatial" or "channel" for all convolutions larger than 1 x 1; None: each takes what costs less, in MACs
            (with `params_reduction`, or where the input's size is open, in parameters).
        skip: names of layers that stay whole. A nested model's name stands for its layers.

    Returns:
        `Factorized(model, plan)`; the model is not compiled.

    Raises:
        UnsupportedLayerError: a layer to factorize is quantized or has LoRA weights.
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
    candidates = {name: _Candidate(name, of_layer, scheme, cost) for name, of_layer in calls.items()}
    if what == "ranks":
        chosen = {name: candidates[name].at_rank(rank) for name, rank in ranks.items()}
    else:
        if what != "energy":
            target = _solve_energy(candidates.values(), getattr(before, cost), what, target)
        chosen = {name: candidate.at_energy(target) for name, candidate in candidates.items()}
    thinner = _build(model, {id(calls[name][0].operation): choice for name, choice in chosen.items() if choice})
    return Factorized(thinner, LowRankPlan(chosen, before, profile(thinner)))


def _given(targets):
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"Give exactly one of {', '.join(targets)}. Received: {given or 'none'}")
    ((name, value),) = given.items()
    if name == "ranks":
        if not isinstance(value, dict):
            raise ValueError(f"ranks must be a dict {{layer name: rank}}. Received: {value!r}")
    elif not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number in (0, 1). Received: {name}={value!r}")
    return name, value


def _calls(model, skip, ranks):
    """{name: its calls} of the layers to choose ranks for."""
    skip, found, names = as_skip(skip), {}, []

    def visit(call):
        names.append(call.name)
        if _can_be_factorized(call.operation):
            found.setdefault(call.name, []).append(call)
        return [None] * len(call.outputs)

    walk(model, [None] * len(model_inputs(model)), visit)
    check_skip(skip, names)
    for name in ranks or ():
        if name not in names:
            raise ValueError(no_such_layer("ranks", name, names))
        if name not in found or is_skipped(name, skip):
            why = "that cannot be factorized" if name not in found else "of skip"
            raise ValueError(f"ranks names a layer {why}: {name!r}. There are {', '.join(found) or 'none'}.")
    chosen = {
        name: calls for name, calls in found.items() if not is_skipped(name, skip) and (ranks is None or name in ranks)
    }
    for call, *_ in chosen.values():
        if getattr(call.operation, "quantization_mode", None) or getattr(call.operation, "lora_enabled", False):
            raise UnsupportedLayerError(
                call.operation, "is quantized or has LoRA weights: factorize the float model, or name it in `skip`"
            )
    return chosen


def _can_be_factorized(operation):
    # A layer as activation can have weights of its own, which stay where they are.
    return (type(operation) is layers.Dense or (type(operation) is layers.Conv2D and operation.groups == 1)) and (
        not isinstance(operation.activation, layers.Layer)
    )


class _Candidate:
    """A layer, how its kernel can be factorized, and what that costs.

    Args:
        name: of the layer.
        calls: all its calls.
        scheme: of the factorization; None tries each.
        cost: "params" or "macs", what the cheapest is chosen by.
    """

    def __init__(self, name, calls, scheme, cost):
        kernel = keras.ops.convert_to_numpy(calls[0].operation.kernel)
        if not np.isfinite(kernel).all():
            raise ValueError(f"The kernel of layer {name!r} holds NaN or infinite values.")
        larger_than_1x1 = kernel.ndim == 4 and kernel.shape[:2] != (1, 1)
        self.name, self.cost = name, cost
        self.whole = _costs(calls, [(kernel.size, positions)])
        self.per_rank, self.energies = {}, {}
        for each in ([scheme] if scheme else SCHEMES) if larger_than_1x1 else ["channel"]:
            self.per_rank[each] = _costs(calls, _parts(kernel.shape, each))
            self.energies[each] = energies(kernel, each)

    def at_rank(self, rank):
        """The cheapest `Factor` of a given rank."""
        most = max(map(len, self.energies.values()))
        if not isinstance(rank, numbers.Integral) or isinstance(rank, bool) or not 1 <= rank <= most:
            raise ValueError(f"ranks[{self.name!r}] must be an integer from 1 to {most}. Received: {rank!r}")
        possible = [each for each in self.energies if rank <= len(self.energies[each])]
        scheme = min(possible, key=lambda each: self.per_rank[each][self.cost])
        return self._factor(scheme, int(rank))

    def at_energy(self, energy):
        """The cheapest `Factor` that keeps an energy; None if the layer itself has as few parameters or MACs."""
        choice = self._cheapest(energy)
        return choice and self._factor(*choice)

    def removed(self, energy):
        """What is saved by keeping an energy only."""
        choice = self._cheapest(energy)
        return self.whole[self.cost] - choice[1] * self.per_rank[choice[0]][self.cost] if choice else 0

    def _cheapest(self, energy):
        choices = [(each, rank_at(energies, energy)) for each, energies in self.energies.items()]
        smaller = [
            (each, rank)
            for each, rank in choices
            if all(rank * count < self.whole[what] for what, count in self.per_rank[each].items())
        ]
        return min(smaller, key=lambda choice: choice[1] * self.per_rank[choice[0]][self.cost], default=None)

    def _factor(self, scheme, rank):
        energies = self.energies[scheme]
        return Factor(scheme, rank, len(energies), float(energies[rank - 1]))


def _parts(shape, scheme):
    """The weights of both factors of a kernel per rank, and a function of a call: how often it uses each of them."""
    *size, channels, filters = shape
    if scheme == "channel":
        return [(math.prod(size) * channels + filters, positions)]
    height, width = size
    return [(height * channels, _column_positions), (width * filters, positions)]


def _column_positions(call):
    """The number of output pixels of the first of two spatial factors, which narrows the height only."""
    first = 2 if call.operation.data_format == "channels_first" else 1
    height, width = call.outputs[0].shape[first], call.inputs[0].shape[first + 1]
    return None if None in (height, width) else height * width


def _costs(calls, parts):
    """{"params", "macs"} of a layer of some parts, without MACs if the spatial size is open."""
    costs = {"params": sum(count for count, _ in parts)}
    uses = [(count, uses(call)) for count, uses in parts for call in calls]
    if all(times is not None for _, times in uses):
        costs["macs"] = sum(count * times for count, times in uses)
    return costs


def _solve_energy(candidates, total, what, target):
    """The largest energy at which a fraction of the total cost is removed."""
    levels = [values for candidate in candidates for values in candidate.energies.values()]
    if not levels:
        raise ValueError(f"{what}={target} cannot be reached: the model has no layer that can be factorized.")
    levels = np.unique(np.concatenate(levels))

    def removed(index):
        return sum(candidate.removed(levels[index]) for candidate in candidates) / total

    if removed(0) < target:
        raise ValueError(f"{what}={target} cannot be reached: rank 1 everywhere removes {removed(0):.1%}.")
    at = bisect.bisect_right(range(len(levels)), -target, key=lambda index: -removed(index))
    return levels[at - 1]


def _build(model, chosen):
    """A copy of a model with the chosen layers, {id(layer): `Factor`}, in two."""
    clones, seconds, used = {}, {}, {}

    def clone(operation):
        if id(operation) not in clones:
            clones[id(operation)] = operation, copy(operation)
        return clones[id(operation)][1]

    def copy(operation):
        if is_nested_model(operation):
            return thin_copy(operation)
        if id(operation) not in chosen:
            return copy_operation(operation)
        first, second = _thin_layers(operation, chosen[id(operation)], used[id(operation)])
        seconds[id(first)] = second
        return first

    def call(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        return seconds[id(operation)](outputs) if id(operation) in seconds else outputs

    def thin_copy(model):
        names = {layer.name for layer in model.layers}
        used.update({id(layer): names for layer in model.layers})
        if not isinstance(model, keras.Sequential):
            return clone_uncompiled(model, clone_function=clone, call_function=call)
        (x,) = model.inputs
        stack = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)]
        for layer in model.layers:
            stack.append(clone(layer))
            if id(stack[-1]) in seconds:
                stack.append(seconds[id(stack[-1])])
        return keras.Sequential(stack, name=model.name)

    thinner, pairs, twins = thin_copy(model), [], []
    for old, new in clones.values():
        if id(old) in chosen:
            second = seconds[id(new)]
            pairs.append((new, second))
            _assign_factors(old, new, second, chosen[id(old)])
            twins += [(old.kernel, new.kernel), (old.kernel, second.kernel)]
            twins += [(old.bias, second.bias)] if old.use_bias else []
        elif not is_nested_model(old):
            for source, target in paired_variables(old, new):
                target.assign(keras.ops.convert_to_numpy(source))
                twins.append((source, target))
    take_statistics(thinner)
    copy_trainable(model, thinner)
    for first, second in pairs:
        first.trainable = second.trainable
    copy_frozen(twins)
    return thinner


def _thin_layers(layer, factor, names):
    """The two layers, without their weights, whose first gets a name that is not among those of its model."""
    config = {key: value for key, value in config_of(layer).items() if key != "kernel_initializer"}
    config["kernel_constraint"] = None
    width = "units" if isinstance(layer, layers.Dense) else "filters"
    name = layer.name + _SUFFIX
    while name in names:
        name += "_"
    names.add(name)
    first = {
        **config,
        "name": name,
        width: factor.rank,
        "use_bias": False,
        "activation": "linear",
        "activity_regularizer": None,
    }
    second = dict(config)
    if isinstance(layer, layers.Conv2D):
        for key in ("kernel_size", "strides", "dilation_rate"):
            height, width = config[key]
            first[key], second[key] = (
                ((height, width), (1, 1)) if factor.scheme == "channel" else ((height, 1), (1, width))
            )
    return type(layer).from_config(first), type(layer).from_config(second)


def _assign_factors(old, first, second, factor):
    kernels = factors(keras.ops.convert_to_numpy(old.kernel), factor.scheme, factor.rank)
    for layer, kernel in zip((first, second), kernels):
        layer.kernel.assign(kernel)
    if old.use_bias:
        second.bias.assign(keras.ops.convert_to_numpy(old.bias))
