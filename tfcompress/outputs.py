"""Logits and probabilities: training and quantization want the former, users mostly have the latter."""

import sys

import keras
import numpy as np
from keras import layers

from tfcompress.errors import listed
from tfcompress.graph import (
    clone_uncompiled,
    copy_model,
    copy_operation,
    frozen_layers,
    inlined,
    is_nested_model,
    producer,
)

# Layers, in Keras 2 and 3, that change no value outside training.
_MOVING = ("Reshape", "Flatten", "Dropout", "Identity")
# Layers that change images in training only: not RandomCrop, which else crops the middle.
AUGMENTATIONS = tuple(
    getattr(layers, name)
    for name in dir(layers)
    if name in ("AugMix", "RandAugment") or (name.startswith("Random") and name != "RandomCrop")
)


def as_logits(model):
    """Copies a classifier without its final softmax, to be trained.

    All layers of the copy can be trained, those that were frozen too: pruned and int8 weights must adapt to each other.
    Layers of augmentation, `AUGMENTATIONS`, become `Identity`: a student and its teacher must see the same images, and
    `TrainingConfig` has augmentation for both. One number for two classes becomes two (`two_classes`). A model inside
    the model (`base(x)`) stays one, unless the softmax is in it.

    Args:
        model: a functional or Sequential Keras 3 model with one input and one output `(batch, classes)`.

    Returns:
        A copy that returns logits, and whether a softmax was removed. A model without one is taken to return logits.

    Raises:
        ValueError: a model that is subclassed or not built, has several inputs or outputs, does not return one number
            per class, ends in a sigmoid, or changes the shape behind its softmax.
    """
    model = two_classes(model)
    check_classifier(model)
    check_no_sigmoid(model)
    if is_nested_model(_last(model)[0]) and ends_in_softmax(model):
        model = inlined(model)
    copy = copy_model(model, clone_function=_copy_without_augmentation)
    for layer in copy._flatten_layers():
        layer.trainable = True
    last, before, is_reshaped = _last(copy)
    end = _end(last)
    if end == "softmax" and (_is_fused(last) or (is_reshaped and isinstance(last, layers.Activation))):
        last.activation = keras.activations.linear
    elif end == "softmax" and is_reshaped:
        raise ValueError(
            f"Model {model.name!r} changes the shape behind its softmax: put the softmax, or a Reshape, before it."
        )
    elif end == "softmax":
        copy = keras.Model(copy.inputs, before, name=model.name)
    return copy, end == "softmax"


def is_augmentation(layer):
    """Whether a layer changes images in training only."""
    parts = layer.layers if isinstance(layer, layers.Pipeline) else [layer]
    return all(isinstance(part, AUGMENTATIONS) for part in parts)


def _copy_without_augmentation(operation):
    if is_nested_model(operation):
        return clone_uncompiled(operation, clone_function=_copy_without_augmentation)
    return layers.Identity(name=operation.name) if is_augmentation(operation) else copy_operation(operation)


def _augmentations(model):
    """Names of the layers of augmentation, of nested models, too."""
    for layer in model.layers:
        if is_nested_model(layer):
            yield from _augmentations(layer)
        elif is_augmentation(layer):
            yield layer.name


def two_classes(model):
    """Gives a classifier of two classes by one number an output for each class.

    A number z, the logit of class 1, becomes (-z/2, z/2), and its sigmoid p the softmax of these, (1 - p, p).

    Args:
        model: a Keras model.

    Returns:
        A copy with two outputs; the model itself where it does not end in a `Dense(1)`, with or without a sigmoid.
    """
    if not isinstance(model, keras.Model) or not is_nested_model(model) or not model.built or len(model.outputs) != 1:
        return model
    if tuple(model.outputs[0].shape[1:]) != (1,):
        return model
    copy = inlined(model) if is_nested_model(_last(model)[0]) else copy_model(model)
    last, before, is_reshaped = _last(copy)
    end = _end(last)
    if end == "sigmoid" and not _is_fused(last):
        last, before, is_reshaped = _last_of(before)
        if _activation(last) != "linear":
            return model
    is_alone = type(last) is layers.Dense and len(last._inbound_nodes) == 1
    if is_reshaped or not is_alone or end not in ("sigmoid", "linear"):
        return model
    head = copy_operation(last, units=2, activation="softmax" if end == "sigmoid" else "linear")
    copy = keras.Model(copy.inputs, head(before), name=model.name)
    head.set_weights([np.concatenate([-weights, weights], -1) / 2 for weights in last.get_weights()])
    return copy


def trainable_logits(model):
    """What `as_logits` returns; stderr says what is not as it was: frozen layers, those of augmentation, one output."""
    logits, had_softmax = as_logits(model)
    if model.output_shape != logits.output_shape:
        print(f"{model.name}: its one output becomes two, of the classes 0 and 1", file=sys.stderr)
    if frozen := frozen_layers(model):
        print(f"{model.name}: {len(frozen)} frozen layers are trained, too: {listed(frozen)}", file=sys.stderr)
    if augmenting := list(_augmentations(model)):
        print(
            f"{model.name}: {listed(augmenting)} left out: no file needs augmentation, and the training has its own "
            "(--flip, --crop-padding, or in a recipe flip, rotation, ...)",
            file=sys.stderr,
        )
    return logits, had_softmax


def with_softmax(model):
    """The model with a softmax behind its logits; it shares the layers and weights of `model`."""
    names = {layer.name for layer in model.layers}
    name = next(name for name in ("softmax", *(f"softmax_{i}" for i in range(1, len(names) + 2))) if name not in names)
    return keras.Model(model.inputs, layers.Softmax(name=name)(model.outputs[0]), name=model.name)


def ends_in_softmax(model):
    """Whether a functional or Sequential Keras 3 or tf_keras model returns probabilities."""
    last, *_ = _last(model)
    is_model = is_nested_model(last) or (not isinstance(last, keras.Layer) and hasattr(last, "_nodes_by_depth"))
    return _end(last) == "softmax" or (is_model and ends_in_softmax(last))


def check_logits(model, what="the model"):
    """Refuses a model that returns probabilities where logits are trained.

    Raises:
        ValueError: it ends in a softmax.
    """
    if getattr(model, "outputs", None) and ends_in_softmax(model):
        raise ValueError(
            f"{what} must return logits, which losses and distillation take. Received: {model.name!r}, which ends in a "
            "softmax. tfcompress.as_logits(model)[0] is the model without it"
        )


def check_classifier(model):
    """Refuses what is no functional or Sequential Keras 3 classifier with one input.

    Raises:
        ValueError: a model that is subclassed or not built, has several inputs or outputs, or does not return one
            number per class.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"A Keras 3 model is expected. Received: {type(model).__module__}.{type(model).__name__}; save one of "
            "Keras 2, and read its file with tfcompress.models.load_model"
        )
    if not is_nested_model(model):
        raise ValueError(f"A functional or Sequential Keras model is expected. Received: {model!r}")
    if not model.built or not model.inputs:
        raise ValueError(f"Model {model.name!r} is not built: its input shape is unknown. Add a keras.Input first.")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"A classifier with one input and one output is expected. Received: {model.name!r} with "
            f"{len(model.inputs)} inputs and {len(model.outputs)} outputs."
        )
    if len(model.outputs[0].shape) != 2 or (model.outputs[0].shape[-1] or 0) < 2:
        raise ValueError(
            "A classifier that returns one number per class, (batch, classes), is expected. "
            f"Received: {model.name!r} with output shape {tuple(model.outputs[0].shape)}. Two classes are two outputs, "
            "with a softmax, or one by a Dense(1) with nothing but a sigmoid behind it."
        )


def check_no_sigmoid(model):
    """Refuses a classifier whose probabilities do not add up to one.

    Raises:
        ValueError: it ends in a sigmoid.
    """
    last, *_ = _last(model)
    if is_nested_model(last):
        check_no_sigmoid(last)
    if _end(last) == "sigmoid":
        raise ValueError(
            f"Model {model.name!r} ends in a sigmoid: a classifier of one label among several is expected, with "
            "softmax or logits."
        )


def divergence(reference, logits):
    """Mean Kullback-Leibler divergence of softmax(logits) from softmax(reference), in nats.

    Args:
        reference: (N, classes) logits of the baseline.
        logits: (N, classes) logits of another network for the same examples. NaN or infinite ones give NaN.
    """
    p, q = (_log_softmax(np.asarray(values, "float64")) for values in (reference, logits))
    return float(np.maximum((np.exp(p) * (p - q)).sum(-1).mean(), 0.0))


def _log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _last(model):
    """The operation that computes the output, its input tensor, and whether the shape changes behind it.

    Operations that change no value do not count.
    """
    return _last_of(model.outputs[0])


def _last_of(tensor):
    operation, before = _unwrapped_producer(tensor)
    is_reshaped = False
    while type(operation).__name__ in _MOVING or (_activation(operation) == "linear" and not _is_fused(operation)):
        is_reshaped |= type(operation).__name__ in ("Reshape", "Flatten")
        operation, before = _unwrapped_producer(before)
    return operation, before, is_reshaped


def _unwrapped_producer(tensor):
    """What `producer` returns; of a layer with the fake quantization of TF-MOT around it, the layer."""
    operation, before = producer(tensor)
    return operation.layer if type(operation).__name__.startswith("QuantizeWrapper") else operation, before


def _end(operation):
    """ "softmax", "sigmoid", or the name of another activation, None without one."""
    # Softmax is a layer, and an operation of keras.ops.
    return "softmax" if type(operation).__name__ == "Softmax" else _activation(operation)


def _activation(operation):
    if type(operation).__name__ == "Sigmoid":
        return "sigmoid"
    activation = getattr(operation, "activation", None)
    # Within a wrapper of TF-MOT, the activation has fake quantization around it, too.
    activation = getattr(activation, "activation", activation)
    name = getattr(activation, "__name__", None)
    # As an activation, Softmax may be a layer, too, or the function tf.nn.softmax.
    return "softmax" if type(activation).__name__ == "Softmax" or name == "softmax_v2" else name


def _is_fused(operation):
    """Whether the activation is a layer's own, of a Dense, and not a layer."""
    return type(operation).__name__ not in ("Activation", "Softmax", "Sigmoid")
