"""Translates Keras 3 models to tf_keras (Keras 2), layer by layer, weights included."""

import inspect
import itertools
import re

import keras
import numpy as np
import tf_keras

from tfcompress.errors import UnsupportedLayerError
from tfcompress.graph import arguments_of, first_inputs
from tfcompress.keras2.activations import ACTIVATIONS


def to_tf_keras(model):
    """Translates a Keras 3 model to tf_keras, the Keras that TF-MOT works on.

    Layer names, weights, dtype policies, regularizers, constraints and `trainable` are kept; initializers are not, the
    weights are there already. Nested models stay nested and shared weights stay shared; a layer without weights becomes
    one layer per call, `relu`, `relu_1`, ..., so that quantization can give each its own range. A Sequential model
    becomes a functional one.

    Args:
        model: a functional or Sequential `keras.Model`, built. A `tf_keras.Model` is returned as it is.

    Returns:
        A `tf_keras.Model` that computes the same outputs.

    Raises:
        ValueError: the model is subclassed, or has not been built.
        UnsupportedLayerError: a layer, or its name, has no counterpart in tf_keras.

    Example:
        >>> to_tf_keras(tfcompress.models.lenet5()).get_layer("conv1").kernel.shape
        TensorShape([5, 5, 1, 20])
    """
    if isinstance(model, tf_keras.Model):
        return model
    function = _as_function(model)
    input_names = {id(op.output): op.name for op in function.operations if isinstance(op, keras.layers.InputLayer)}
    inputs = [tf_keras.Input(batch_shape=x.shape, dtype=x.dtype, name=input_names[id(x)]) for x in function.inputs]
    counterparts, names = {}, {operation.name for operation in function.operations}

    def counterpart(operation):
        if id(operation) not in counterparts:
            counterparts[id(operation)] = _translate(operation)
            return counterparts[id(operation)]
        if getattr(operation, "weights", None) or isinstance(operation, keras.Model):
            return counterparts[id(operation)]
        copy = _translate(operation)
        copy._name = next(name for i in itertools.count(1) if (name := f"{operation.name}_{i}") not in names)
        names.add(copy._name)
        return copy

    # The one private call: it walks the graph in order with any callable in the place of each operation.
    outputs = function._run_through_graph(inputs, lambda operation: _as_given(operation, counterpart(operation)))
    for operation in function.operations:
        if getattr(operation, "weights", None) and not isinstance(operation, keras.Model) and not _special(operation):
            _copy_weights(operation, counterpart(operation))
    return tf_keras.Model(
        inputs[0] if len(inputs) == 1 else inputs, outputs, name=model.name, trainable=model.trainable
    )


def _as_given(operation, call):
    """`call` without the arguments that nobody gave, which Keras 3 records, too: they would stay in the tf_keras model.

    Those are mask=None, and the default of `training`, which would keep dropout off for ever.
    """
    parameters = inspect.signature(operation.call).parameters
    default = {"training": parameters["training"].default} if "training" in parameters else {}

    def given(key, value):
        return value is not None and (key not in default or value is not default[key])

    return lambda *args, **kwargs: call(*args, **{key: value for key, value in kwargs.items() if given(key, value)})


def _as_function(model):
    if not isinstance(model, keras.Model):
        raise ValueError(f"expected a keras.Model. Received: {type(model).__name__}")
    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        inputs = None
    if not inputs:
        raise ValueError(
            f"Model {model.name!r} has no inputs: it is subclassed or has not been built. Use a functional model, or a "
            "Sequential one that starts with keras.Input or has been called."
        )
    return keras.Function(inputs, outputs)


def _translate(operation):
    """The tf_keras layer, or a function of tf_keras tensors, that stands for a Keras 3 operation."""
    if not re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.>-]*", operation.name):
        raise UnsupportedLayerError(
            operation,
            "tf_keras takes no such name; give it one of letters, digits, '_' and '-' that begins with a letter",
        )
    if isinstance(operation, keras.Model):
        return to_tf_keras(operation)
    if _special(operation):
        return _special(operation)(operation)
    if isinstance(operation, keras.layers.Add | keras.layers.Multiply) and len(first_inputs(operation)) > 2:
        return _pairwise(operation)
    layer_class = getattr(tf_keras.layers, type(operation).__name__, None)
    if type(operation) is not getattr(keras.layers, type(operation).__name__, None) or layer_class is None:
        raise UnsupportedLayerError(operation, "has no counterpart in tf_keras; replace it by stock layers")
    return layer_class(**_translate_config(operation, layer_class))


def _translate_config(layer, layer_class):
    """The arguments of the tf_keras layer; whatever tf_keras does not know must be switched off."""
    config = {key: value for key, value in layer.get_config().items() if not key.endswith("_initializer")}
    config["dtype"] = layer.dtype_policy.name
    for key, value in config.items():
        if key == "activation":
            config[key] = _translate_activation(layer)
        elif key.endswith(("_regularizer", "_constraint")) and value is not None:
            module = tf_keras.regularizers if key.endswith("_regularizer") else tf_keras.constraints
            config[key] = module.get({"class_name": value["class_name"], "config": value["config"]})
    known = arguments_of(layer_class)
    unknown = {key: value for key, value in config.items() if key not in known and value not in (None, False)}
    # Without effect, as `renorm` itself must be off, and all dropout is.
    for key in ("renorm_momentum", "seed"):
        unknown.pop(key, None)
    if unknown:
        raise UnsupportedLayerError(layer, f"tf_keras has no counterpart of {unknown}")
    return {key: value for key, value in config.items() if key in known}


def _translate_activation(layer):
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    if getattr(keras.activations, name, None) is not layer.activation or name not in ACTIVATIONS:
        raise UnsupportedLayerError(layer, f"activation {name!r} has no counterpart in tf_keras")
    return ACTIVATIONS[name]


def _copy_weights(source, target):
    """Copies the weights by role ("kernel", "moving_mean", ...): their order differs between the two frameworks."""
    roles = {weight.name: weight for weight in source.weights}
    kernel = "kernel" if isinstance(source, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D) else None
    names = [variable.name.split("/")[-1].split(":")[0] for variable in target.weights]
    names = [kernel if kernel and name == "depthwise_kernel" else name for name in names]
    if sorted(names) != sorted(weight.name for weight in source.weights) or len(set(names)) < len(names):
        raise UnsupportedLayerError(source, f"its weights {sorted(roles)} do not match tf_keras's {sorted(names)}")
    for name, variable in zip(names, target.weights):
        variable.assign(np.reshape(roles[name], variable.shape))


def _special(operation):
    """How to translate an operation that is not a layer of the same name and arguments in tf_keras, or None."""
    return _SPECIAL.get(f"{type(operation).__module__}.{type(operation).__name__}")


def _normalization(layer):
    # Keras 3 keeps given statistics as constants and adapted ones as weights; tf_keras takes both as arguments.
    mean, variance = (layer.adapt_mean, layer.adapt_variance) if layer.mean is None else (layer.mean, layer.variance)
    return tf_keras.layers.Normalization(
        axis=layer.axis, mean=np.ravel(mean), variance=np.ravel(variance), invert=layer.invert, **_identity(layer)
    )


def _identity(layer):
    return {"name": layer.name, "trainable": layer.trainable, "dtype": layer.dtype_policy.name}


def _leaky_relu(layer):
    return tf_keras.layers.LeakyReLU(layer.negative_slope, **_identity(layer))


def _layer_scale(layer):
    """ConvNeXt's x * gamma, as the 1x1 depthwise convolution that it is."""
    kernel = np.reshape(layer.gamma, (1, 1, -1, 1))
    return tf_keras.layers.DepthwiseConv2D(1, use_bias=False, weights=[kernel], **_identity(layer))


def _scaled_sum(layer):
    """InceptionResNetV2's CustomScaleLayer: x + scale * residual."""
    scaled = tf_keras.layers.Rescaling(layer.scale, name=f"{layer.name}_scaled", dtype=layer.dtype_policy.name)
    added = tf_keras.layers.Add(**_identity(layer))
    return lambda inputs: added([inputs[0], scaled(inputs[1])])


def _pairwise(layer):
    """An Add or Multiply of many tensors, as one of two tensors after the other: int8 has no other."""
    layer_class, identity = getattr(tf_keras.layers, type(layer).__name__), _identity(layer)

    def merge(inputs):
        total, *others = inputs
        for number, x in enumerate(others, 1):
            last = number == len(others)
            total = layer_class(**identity if last else {**identity, "name": f"{layer.name}_first{number + 1}"})(
                [total, x]
            )
        return total

    return merge


def _add(operation):
    return lambda a, b: _binary(operation, a, b, tf_keras.layers.Add, lambda c: (1.0, c), lambda c: (1.0, c))


def _subtract(operation):
    return lambda a, b: _binary(operation, a, b, tf_keras.layers.Subtract, lambda c: (1.0, -c), lambda c: (-1.0, c))


def _multiply(operation):
    return lambda a, b: _binary(operation, a, b, tf_keras.layers.Multiply, lambda c: (c, 0.0), lambda c: (c, 0.0))


def _divide(operation):
    return lambda a, b: _binary(operation, a, b, None, lambda c: (1 / c, 0.0), None)


def _binary(operation, a, b, layer_class, right, left):
    """Arithmetic written with operators: a merge layer, or a Rescaling where one side is a number.

    Args:
        operation: the Keras 3 operation.
        a, b: its sides.
        layer_class: the merge layer of two tensors, or None.
        right, left: function of the number on that side that returns (scale, offset), or None.
    """
    identity = {"name": operation.name, "dtype": operation.output.dtype}
    tensors = [hasattr(side, "_keras_history") for side in (a, b)]
    if all(tensors) and layer_class:
        return layer_class(**identity)([a, b])
    tensor, constant, rescaling = (a, b, right) if tensors[0] else (b, a, left)
    if rescaling and not all(tensors) and np.ndim(constant) == 0:
        scale, offset = rescaling(float(constant))
        return tf_keras.layers.Rescaling(scale, offset, **identity)(tensor)
    raise UnsupportedLayerError(
        operation, "has no counterpart in tf_keras, where it takes two tensors, or one and a number (to divide by)"
    )


_SPECIAL = {
    "keras.src.layers.preprocessing.normalization.Normalization": _normalization,
    "keras.src.layers.activations.leaky_relu.LeakyReLU": _leaky_relu,
    "keras.src.applications.convnext.LayerScale": _layer_scale,
    "keras.src.applications.inception_resnet_v2.CustomScaleLayer": _scaled_sum,
    "keras.src.ops.numpy.Add": _add,
    "keras.src.ops.numpy.Subtract": _subtract,
    "keras.src.ops.numpy.Multiply": _multiply,
    "keras.src.ops.numpy.TrueDivide": _divide,
    "keras.src.ops.numpy.Divide": _divide,
}
