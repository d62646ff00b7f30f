"""Which channels of a network live or die together, found by carrying channel ids through its graph.

Every channel of every tensor has an id. Producers (convolutions, dense layers) make fresh ids, most layers pass them
on, additions unite them, concatenations join them. Classes of united ids are the *coupled channels*: they are kept
or removed together. As every weight axis is labelled with ids, a set of removed channels determines the slice of
every weight, whatever the topology. The rules for each kind of layer are in `rules.py`.
"""

import difflib
import functools
import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import keras
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfcompress.errors import UnsupportedLayerError
from tfcompress.graph import model_inputs, walk
from tfcompress.profiling import counted_weights, kernels, positions
from tfcompress.surgery.rules import border, find_rule
from tfcompress.surgery.tensor import FROZEN, Tensor

_INT8_BYTES = {"bias": 4, "beta": 4, "gamma": 0}


@dataclass(frozen=True)
class Label:
    """One weight of a layer: which axes hold channels, and the ids along them."""

    layer: str
    variable: object
    ids: dict  # axis -> ids


@dataclass(frozen=True)
class Producer:
    """A layer that makes channels: its filters are the slices of `variable` along `axis`."""

    name: str
    variable: object
    axis: int
    ids: np.ndarray


@dataclass(frozen=True)
class Group:
    """Coupled channels with the same producers.

    Attributes:
        name: the first producer's path, with "#2", ... if that layer holds several groups.
        classes: (N,) index of each coupled channel's class.
        positions: {producer: (N, m)}, the output channels of the layer that belong to each coupled channel.
    """

    name: str
    classes: np.ndarray
    positions: dict = field(hash=False)

    def __len__(self):
        return len(self.classes)


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        params: parameters, without BatchNorm's moving statistics.
        macs: multiply-accumulates of one example, None if the spatial size is open.
        int8_bytes: estimated size of its weights in an int8 file: one byte each, four for biases, and BatchNorm
            folded into them.
    """

    params: int
    macs: int | None
    int8_bytes: int


class ChannelGraph:
    """The coupled channels of a Sequential or functional model.

    Args:
        model: a Keras model that is built; nested models are entered, and their layers named "outer/inner".
        skip: layer names whose output channels are all kept. A nested model's name stands for its layers. Around a
            layer that has no rule, skipping also keeps all its input channels.

    Attributes:
        producers: {layer name: `Producer`} in topological order.
        groups: list of `Group`.
        class_of: (ids,) class of each id.
        nested_inputs: {id of a nested model: the `Tensor`s of its inputs}.
        frozen: (classes,) which classes are never removed.

    Raises:
        UnsupportedLayerError: for a layer that has no rule and is not skipped.
        ValueError: for a subclassed or unbuilt model, or a skipped name that does not exist.
    """

    def __init__(self, model, skip=()):
        self.model = model
        self.skip = as_skip(skip)
        self.layers = {}
        self.producers = {}
        self.labels = {}
        self.resizes = {}
        self.nested_inputs = {}
        self.uses = {}
        self._count = 1
        self._edges = []
        self._parts = []
        self._frozen = [(np.array([FROZEN]), "it is no channel of a layer")]
        inputs = [Tensor(tuple(x.shape)) for x in model_inputs(model)]
        for tensor in walk(model, inputs, self._visit, self._enter):
            self.freeze(tensor, "an output of the model")
        check_skip(self.skip, self._names())
        self._couple()

    # What rules call while the graph is walked.

    def consume(self, tensor, axis):
        """The ids along the axis that a layer mixes (a dense layer's last). A consumer reads removed channels as zero,
        so channels that would not be zero (behind a sigmoid, say) are frozen."""
        if not tensor.quiet:
            self.freeze(tensor, "a silenced channel would not read zero here (an activation with f(0) != 0)")
        return self.along(tensor, axis)

    def along(self, tensor, axis):
        """The ids along an axis of a tensor; if its channels are on another axis, they are frozen."""
        axis %= len(tensor.shape)
        if tensor.ids is not None and tensor.axis == axis:
            return tensor.ids
        self.freeze(tensor, "a layer takes another axis for the channels")
        return np.full(tensor.shape[axis] or 0, FROZEN)

    def fresh(self, count):
        """New ids for `count` channels."""
        ids = np.arange(self._count, self._count + count)
        self._count += count
        return ids

    def produce(self, name, variable, axis, count, repeats=1):
        """The ids of the channels that a layer makes: the same ones each time that a shared layer is called.

        Args:
            name: the layer's path.
            variable, axis: the weight, and its axis, whose slices are the filters.
            count: number of independent channels.
            repeats: how often they repeat along the axis (groups of a convolution, which stay equally wide).
        """
        if name not in self.producers:
            ids = np.tile(self.fresh(count), repeats)
            self.producers[name] = Producer(name, variable, axis % len(variable.shape), ids)
        return self.producers[name].ids

    def label(self, name, variable, ids):
        """Says which ids the axes of a weight hold: `ids` is {axis: ids}, negative axes allowed."""
        ids = {axis % len(variable.shape): labels for axis, labels in ids.items()}
        known = self.labels.setdefault(id(variable), Label(name, variable, ids))
        for axis, labels in ids.items():
            self.unite(known.ids[axis], labels)

    def resize(self, layer, ids, config):
        """Says how a layer's configuration follows its width.

        Args:
            layer: the layer or operation.
            ids: the ids that its width depends on.
            config: function of `kept`, itself a function that counts the kept channels of ids; returns the entries of
                the layer's configuration to change.
        """
        known, _ = self.resizes.setdefault(id(layer), (ids, config))
        if len(known) == len(ids):
            self.unite(known, ids)
        else:
            self.freeze_ids(known, "a shared layer is called with two widths")
            self.freeze_ids(ids, "a shared layer is called with two widths")

    def unite(self, a, b):
        """Couples channels position by position."""
        if a is not b:
            self._edges.append((a, b))

    def part(self, ids):
        """Says that a layer takes these channels alone: they are a group of their own, which keeps at least one."""
        self._parts.append(ids)

    def freeze(self, tensor, reason):
        """Keeps all channels of a tensor, and says why."""
        if tensor.ids is not None:
            self.freeze_ids(tensor.ids, reason)

    def freeze_ids(self, ids, reason):
        """Keeps all channels with these ids, and says why."""
        self._frozen.append((ids, reason))

    # What plans and rebuilding ask of the finished graph.

    def alive(self, kept):
        """Which classes are alive when only some output channels of some producers are kept.

        Args:
            kept: {layer name: indices of the kept output channels}; other producers keep theirs if they can.

        Returns:
            (classes,) array of bool.
        """
        alive = np.ones(len(self.frozen), bool)
        for name, indices in kept.items():
            removed = np.ones(len(self.producers[name].ids), bool)
            removed[indices] = False
            alive[self.class_of[self.producers[name].ids[removed]]] = False
        return alive

    def kept(self, alive):
        """The kept output channels of every producer: {layer name: indices}."""
        return {name: np.flatnonzero(alive[self.class_of[producer.ids]]) for name, producer in self.producers.items()}

    def check_layer(self, argument, name):
        """Raises a ValueError, with the nearest name, where an argument names a layer that the model does not have."""
        if name not in self._names():
            raise ValueError(no_such_layer(argument, name, self._names()))

    def _names(self):
        return [name for name, _ in self.layers.values()]

    def indices(self, variable, alive):
        """{axis: kept indices} of a weight."""
        label = self.labels.get(id(variable))
        ids = label.ids if label else {}
        return {axis: np.flatnonzero(alive[self.class_of[x]]) for axis, x in ids.items()}

    def cost(self, alive):
        """The `Cost` of the network with only these classes, without building it."""
        counts = [int(np.count_nonzero(alive[classes])) for classes in self._widths]
        params, macs, int8_bytes = 0, 0, 0
        for constant, widths, uses, weight_bytes in self._terms:
            size = constant * math.prod(counts[i] for i in widths)
            params += size
            macs = None if macs is None or uses is None else macs + size * uses
            int8_bytes += size * weight_bytes
        return Cost(params, macs, int8_bytes)

    def filters(self, group, alive=None):
        """The filters of a group as a matrix (N, d): coupled producers concatenated.

        Args:
            group: a `Group`.
            alive: if given, the weights that read removed channels are left out.

        Raises:
            ValueError: weights that are NaN or infinite.
        """
        blocks = []
        for name, where in group.positions.items():
            producer = self.producers[name]
            kernel = _value(producer.variable)
            if kernel.dtype.itemsize < 4:
                kernel = kernel.astype("float32")
            if not np.isfinite(kernel).all():
                raise ValueError(f"The weights of layer {name!r} are not finite: nothing can be said of its filters.")
            for axis, indices in ({} if alive is None else self.indices(producer.variable, alive)).items():
                if axis != producer.axis:
                    kernel = kernel.take(indices, axis)
            kernel = np.moveaxis(kernel, producer.axis, 0)
            blocks.append(kernel[where].reshape(len(group), -1))
        return np.concatenate(blocks, axis=1)

    @functools.cached_property
    def groups(self):
        """The groups of coupled channels that can be removed, in the order of their first producers."""
        names, group_of = self._number_groups()
        positions = [{} for _ in names]
        for producer in self.producers.values():
            classes = self.class_of[producer.ids]
            numbers = group_of[classes]
            for number in np.unique(numbers[numbers >= 0]):
                mine = np.flatnonzero(numbers == number)
                positions[number][producer.name] = mine[np.argsort(classes[mine], kind="stable")]
        return [
            _group(name, np.flatnonzero(group_of == number), positions[number]) for number, name in enumerate(names)
        ]

    def _number_groups(self):
        """The names of the groups, and (classes,) the number of each class's group, -1 for classes without one."""
        signature = self._signatures()
        group_of, names, taken = np.full(len(self.frozen), -1), [], {}
        for name, producer in self.producers.items():
            classes = np.unique(self.class_of[producer.ids])
            new = classes[~self.frozen[classes] & (group_of[classes] < 0)]
            for value in dict.fromkeys(signature[new].tolist()):
                taken[name] = taken.get(name, 0) + 1
                group_of[signature == value] = len(names)
                names.append(f"{name}#{taken[name]}" if taken[name] > 1 else name)
        group_of[self.frozen] = -1
        return names, group_of

    def _signatures(self):
        """A number per class that is the same for classes with the same producers and parts (each equally often)."""
        sets = [*(producer.ids for producer in self.producers.values()), *self._parts]
        weights = np.random.default_rng(0).integers(1, 2**62, len(sets), dtype=np.uint64)
        signature = np.zeros(len(self.frozen), np.uint64)
        for weight, ids in zip(weights, sets):
            np.add.at(signature, self.class_of[ids], weight)
        return signature

    def __str__(self):
        lines = [f"{self.model.name}: {len(self.groups)} groups of coupled channels"]
        for number, group in enumerate(self.groups, start=1):
            lines.append(f"\ngroup {number}, {group.name}: {len(group)} coupled channels")
            lines += [f"  {line}" for line in self._members(group)]
        lines += self._frozen_lines()
        return "\n".join(lines)

    def _members(self, group):
        """One line for each set of weights of a layer that hold the group's channels alike."""
        in_group = np.zeros(len(self.frozen), bool)
        in_group[group.classes] = True
        lines = {}
        for label in self.labels.values():
            for axis, ids in label.ids.items():
                count = np.count_nonzero(in_group[self.class_of[ids]])
                producer = self.producers.get(label.layer)
                made = producer and producer.variable is label.variable and producer.axis == axis
                key = ("makes" if made else "holds", label.layer, axis, count, len(ids))
                if count:
                    lines.setdefault(key, []).append(label.variable.name)
        for (verb, layer, axis, count, width), names in lines.items():
            yield f"{verb} {layer}: {', '.join(names)}, axis {axis}: {count} of {width}"

    def _frozen_lines(self):
        reason_of = {}
        for ids, reason in self._frozen:
            for number in self.class_of[ids]:
                reason_of.setdefault(number, reason)
        lines = []
        for name, producer in self.producers.items():
            classes = self.class_of[producer.ids]
            if self.frozen[classes].any():
                number = classes[self.frozen[classes]]
                lines.append(f"  {name}: {len(number)} of {len(classes)} channels, {reason_of[number[0]]}")
        return ["\nkept whole:", *lines] if lines else []

    # The walk.

    def _enter(self, model, values):
        """A nested model has one width, however often it is called."""
        for known, tensor in zip(self.nested_inputs.setdefault(id(model), values), values):
            tracked = known.ids is not None and tensor.ids is not None
            if tracked and known.axis == tensor.axis and len(known.ids) == len(tensor.ids):
                self.unite(known.ids, tensor.ids)
            else:
                self.freeze(known, "a shared nested model is called on something else, too")
                self.freeze(tensor, "a shared nested model is called on something else, too")

    def _visit(self, call):
        self.layers.setdefault(id(call.operation), (call.name, call.operation))
        used = self.uses.get(id(call.operation), 0)
        count = positions(call)
        self.uses[id(call.operation)] = None if used is None or count is None else used + count
        skipped = is_skipped(call.name, self.skip)
        rule = find_rule(call.operation)
        if rule is None and not skipped:
            raise UnsupportedLayerError(
                call.operation,
                f"surgery does not know how it treats channels. Name it in `skip=[{call.name!r}]` to keep the "
                "channels around it, or teach it with `tfcompress.surgery.register_rule`.",
            )
        outputs = (rule or border)(call, self)
        if not isinstance(outputs, list | tuple) or len(outputs) != len(call.outputs):
            raise ValueError(
                f"The rule of layer {call.name!r} must return a list of {len(call.outputs)} tensors, one for each "
                f"output. Received: {outputs!r:.80}"
            )
        if skipped:
            for tensor in outputs:
                self.freeze(tensor, "skipped")
        return [replace(tensor, shape=tuple(spec.shape)) for tensor, spec in zip(outputs, call.outputs)]

    def _couple(self):
        a = np.concatenate([np.array([0]), *[a for a, _ in self._edges]])
        b = np.concatenate([np.array([0]), *[b for _, b in self._edges]])
        edges = coo_array((np.ones(len(a), bool), (a, b)), shape=(self._count, self._count))
        count, self.class_of = connected_components(edges, directed=False)
        self.frozen = np.zeros(count, bool)
        for ids, _ in self._frozen:
            self.frozen[self.class_of[ids]] = True
        self._prepare_cost()

    def _prepare_cost(self):
        """One term per weight: size of its unlabelled axes, its labels, its uses by one example, its bytes in int8."""
        number, self._widths, self._terms = {}, [], []
        for _, layer in self.layers.values():
            of_kernels = {id(kernel) for kernel in kernels(layer)}
            for variable in counted_weights(layer):
                ids = self.labels[id(variable)].ids if id(variable) in self.labels else {}
                for x in ids.values():
                    if id(x) not in number:
                        number[id(x)] = len(self._widths)
                        self._widths.append(self.class_of[x])
                constant = math.prod(size for axis, size in enumerate(variable.shape) if axis not in ids)
                uses = self.uses[id(layer)] if id(variable) in of_kernels else 0
                int8_bytes = _INT8_BYTES.get(variable.name, 1)
                self._terms.append((constant, [number[id(x)] for x in ids.values()], uses, int8_bytes))


def _group(name, classes, positions):
    """A group from its classes, ascending, and each producer's positions sorted by class."""
    positions = {producer: where.reshape(len(classes), -1) for producer, where in positions.items()}
    order = np.argsort(next(iter(positions.values()))[:, 0])
    return Group(name, classes[order], {producer: where[order] for producer, where in positions.items()})


def as_skip(skip):
    """The names in `skip` as a tuple; a ValueError for a single string, which would be taken for a list of letters."""
    if isinstance(skip, str):
        raise ValueError(f"skip must be a list of layer names. Received: {skip!r}")
    return tuple(skip)


def is_skipped(name, skip):
    """Whether a layer, or a nested model around it, is among the names of `skip`."""
    return any(name == skipped or name.startswith(f"{skipped}/") for skipped in skip)


def check_skip(skip, names):
    """Raises a ValueError for the first name in `skip` that stands for none of these layers."""
    for skipped in skip:
        if not any(is_skipped(name, [skipped]) for name in names):
            raise ValueError(no_such_layer("skip", skipped, names))


def no_such_layer(argument, name, names):
    """The message for a layer name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"{argument} names a layer that the model does not have: {name!r}. The nearest name is {near[0]!r}."


def _value(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))
