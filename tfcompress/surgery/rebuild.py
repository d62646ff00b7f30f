"""From a plan to a smaller network: clone with other widths, then assign the sliced weights."""

import keras
import numpy as np

from tfcompress.graph import (
    clone_uncompiled,
    config_of,
    copy_frozen,
    copy_operation,
    copy_trainable,
    is_nested_model,
    paired_variables,
    take_statistics,
)
from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.plan import classes_kept


def apply_plan(model, plan):
    """Builds the network that a plan describes.

    Args:
        model: the Keras model that the plan was made for. It is not changed.
        plan: a `PruningPlan`.

    Returns:
        A Keras model of the same layers and names, not compiled, with fewer channels and the kept weights.

    Raises:
        ValueError: if the plan is for another network.
    """
    graph = ChannelGraph(model, plan.skip)
    return rebuild(graph, classes_kept(graph, plan))


def rebuild(graph, alive):
    """Builds the network with only the given classes of a `ChannelGraph`: (classes,) bool."""
    clones = {}

    def kept(ids):
        return int(np.count_nonzero(alive[graph.class_of[ids]]))

    def clone(operation):
        if id(operation) not in clones:
            clones[id(operation)] = operation, _clone(graph, operation, kept, clone)
        return clones[id(operation)][1]

    model = clone_uncompiled(graph.model, clone_function=clone)
    for old, new in clones.values():
        if not is_nested_model(old):
            _assign(graph, alive, old, new)
    take_statistics(model)
    copy_trainable(graph.model, model)
    for old, new in clones.values():
        copy_frozen(paired_variables(old, new))
    return model


def _clone(graph, operation, kept, clone):
    """A layer, operation or nested model with its new width."""
    if is_nested_model(operation):
        return _clone_nested(graph, operation, kept, clone)
    changes = graph.resizes[id(operation)][1](kept) if id(operation) in graph.resizes else {}
    for name, value in vars(operation).items():
        if isinstance(value, keras.initializers.Constant) and np.ndim(value.value) and name in config_of(operation):
            changes[name] = "zeros"  # an array of the old width; the weights are assigned anyway
    return copy_operation(operation, **changes)


def _clone_nested(graph, model, kept, clone):
    """`clone_model` would give a nested model inputs of the old width."""
    inputs = []
    for x, tensor in zip(model.inputs, graph.nested_inputs[id(model)]):
        shape = list(x.shape)
        if tensor.ids is not None and shape[tensor.axis] is not None:
            shape[tensor.axis] = kept(tensor.ids)
        inputs.append(keras.Input(batch_shape=shape, dtype=x.dtype, name=x.name))
    inputs = inputs if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, inputs)
    return clone_uncompiled(model, input_tensors=inputs, clone_function=clone)


def _assign(graph, alive, old, new):
    for source, target in paired_variables(old, new):
        value = np.asarray(keras.ops.convert_to_numpy(source))
        for axis, indices in graph.indices(source, alive).items():
            if len(indices) < value.shape[axis]:
                value = value.take(indices, axis)
        if value.shape != tuple(target.shape):
            raise ValueError(
                f"The weight {source.name!r} of layer {old.name!r} would be {value.shape} and must be "
                f"{tuple(target.shape)}: the rule of {type(old).__name__} does not label its axes as its settings say."
            )
        target.assign(value)
