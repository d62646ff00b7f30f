"""Logits and probabilities: training and quantization want the former, users mostly have the latter."""

import keras
from keras import layers

from tfcompress.graph import clone_uncompiled


def as_logits(model):
    """Copies a classifier without its final softmax.

    Args:
        model: a functional or Sequential Keras 3 model with one input and one output `(batch, classes)`.

    Returns:
        A copy that returns logits, and whether a softmax was removed. A model without one is taken to return logits.

    Raises:
        ValueError: a model that is subclassed or not built, has several inputs or outputs, or does not return one
            number per class.
    """
    _check(model)
    last = model.layers[-1] if isinstance(model, keras.Sequential) else model.outputs[0]._keras_history.operation
    if isinstance(last, layers.Softmax) or _softmax_activation(last) == "layer":
        copy = _copy(model)
        copy = keras.Model(copy.inputs, copy.get_layer(last.name).input, name=model.name)
        return copy, True
    if _softmax_activation(last) == "fused":

        def linear(layer):
            if layer is not last:
                return type(layer).from_config(layer.get_config()) if isinstance(layer, keras.Layer) else layer
            return type(layer).from_config({**layer.get_config(), "activation": "linear"})

        copy = clone_uncompiled(model, clone_function=linear)
        copy.set_weights(model.get_weights())
        return copy, True
    if _activation(last) is keras.activations.sigmoid:
        raise ValueError(
            f"Model {model.name!r} ends in a sigmoid: a classifier of one label among several is expected, with "
            "softmax or logits."
        )
    return _copy(model), False


def with_softmax(model):
    """The model with a softmax behind its logits; it shares the layers and weights of `model`."""
    return keras.Model(model.inputs, layers.Softmax(name="softmax")(model.outputs[0]), name=model.name)


def _check(model):
    if not isinstance(model, keras.Sequential) and not any(b.__name__ == "Functional" for b in type(model).__mro__):
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
            f"Received: {model.name!r} with output shape {tuple(model.outputs[0].shape)}."
        )


def _softmax_activation(layer):
    """ "layer" for an Activation layer, "fused" for another layer's own activation, None if it is no softmax."""
    if _activation(layer) is not keras.activations.softmax:
        return None
    return "layer" if isinstance(layer, layers.Activation) else "fused"


def _activation(layer):
    return getattr(layer, "activation", None)


def _copy(model):
    copy = clone_uncompiled(model)
    copy.set_weights(model.get_weights())
    return copy
