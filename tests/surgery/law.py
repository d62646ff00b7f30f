"""The law of surgery: pruned(x) is the original in which every consumer reads zero at the removed channels.

The reference does not use the package's channel graph. It runs the original with NaN in the removed output channels
of the producers. NaN spreads through whatever a channel touches, and only a layer that sums over channels reads it as
zero; so a channel that the surgery should have removed together with another one, and did not, turns up as NaN.
"""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph import walk
from tfcompress.surgery import prune_channels
from tfcompress.surgery.recalibration import recalibrate

CONSUMERS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Dense,
)


def float64(model):
    """A clone of the model that computes in float64, with the same weights."""

    def clone(operation):
        config = operation.get_config()
        if isinstance(operation, layers.Layer):
            config["dtype"] = "float64"
        return type(operation).from_config(config)

    new = keras.models.clone_model(model, clone_function=clone, recursive=True)
    new.set_weights([np.asarray(weight, "float64") for weight in model.get_weights()])
    return new


def lifelike(model, x, seed=0):
    """Gives the model weights and statistics with which every signal is of order one. Returns the model."""
    rng = np.random.default_rng(seed)
    flat = list(model._flatten_layers(include_self=False))
    normalized = any(isinstance(layer, layers.BatchNormalization) for layer in flat)
    for layer in flat:
        if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
            shape = layer.kernel.shape
            layer.kernel.assign(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-2])))
        elif isinstance(layer, layers.Conv2D) and not normalized:  # Keras' default weights shrink the signals
            shape = layer.kernel.shape
            layer.kernel.assign(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])))
        elif type(layer).__name__ == "LayerScale":
            layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape))
        for name, low, high in (("gamma", 0.7, 1.3), ("beta", -0.3, 0.3), ("bias", -0.3, 0.3), ("alpha", 0.1, 0.4)):
            variable = getattr(layer, name, None)
            if isinstance(variable, keras.Variable):
                variable.assign(rng.uniform(low, high, variable.shape))
    return recalibrate(model, x)


def silenced(model, kept, x):
    """The outputs of the model in which every consumer reads zero where `kept` has removed a channel."""
    outputs = walk(model, [ops.convert_to_tensor(value) for value in x], lambda call: _silenced_call(call, kept))
    return [ops.convert_to_numpy(output) for output in outputs]


def assert_law(model, x, tolerance=1e-6, control=True, **arguments):
    """Prunes a float64 clone, compares it with the silenced original, and checks that the comparison is sharp."""
    model = float64(model)
    x = [np.asarray(value, "float32").astype("float64") for value in x]  # a Keras model casts its input to float32
    pruned, plan = prune_channels(model, **arguments)
    expected = silenced(model, plan.kept, x)
    assert_close(run(pruned, x), expected, tolerance)
    for output in expected:
        assert 1e-3 < np.std(output) < 1e4, f"signals must be of order one, not {np.std(output)}"
    if control:
        assert a_permuted_layer_is_noticed(pruned, plan, x, expected, 1e3 * tolerance)
    return pruned, plan


def assert_close(outputs, expected, tolerance):
    assert [x.shape for x in outputs] == [x.shape for x in expected]
    assert difference(outputs, expected) <= tolerance


def difference(outputs, expected):
    """Largest difference, relative to the signal where that is above one. NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(outputs, expected):
        delta = np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b)))
        worst = max(worst, np.inf if np.isnan(delta) else float(delta))
    return worst


def run(model, x):
    """The outputs as a list of numpy arrays, in inference."""
    outputs = model(keras.tree.pack_sequence_as(model.input, x) if len(x) > 1 else x[0], training=False)
    return [ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def a_permuted_layer_is_noticed(pruned, plan, x, expected, tolerance):
    """Rolls the filters of one pruned layer by one, as a wrong surgery would, and compares as the law does.

    The middle layer comes first. The next is tried where nothing changes: units that are never active may trade places.
    """
    narrowed = [name for name, kept in plan.kept.items() if 1 < len(kept) < plan.widths[name]]
    for name in sorted(narrowed, key=lambda name: abs(narrowed.index(name) - len(narrowed) // 2)):
        layer = pruned
        for part in name.split("/"):
            layer = layer.get_layer(part)
        kernel = layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel
        axis = -2 if "Transpose" in type(layer).__name__ else -1
        right = ops.convert_to_numpy(kernel)
        kernel.assign(np.roll(right, 1, axis))
        if difference(run(pruned, x), expected) > tolerance:
            return True
        kernel.assign(right)
    return False


def _silenced_call(call, kept):
    operation = call.operation
    xs = [x for x in keras.tree.flatten((call.args, call.kwargs)) if ops.is_tensor(x)]
    nan = [ops.isnan(x) for x in xs]
    consumer = isinstance(operation, CONSUMERS)
    if consumer or "MaxPool" in type(operation).__name__:
        y = operation(*[ops.where(n, ops.zeros_like(x), x) for n, x in zip(nan, xs)])
    else:
        y = operation(*call.args, **call.kwargs)
    if consumer and _is_depthwise(operation):
        dead = np.asarray(ops.convert_to_numpy(nan[0])).any(axis=(0, 1, 2))
        return [_with_nan(y, np.flatnonzero(~np.repeat(dead, operation.filters // len(dead))), operation)]
    if consumer:
        return [_with_nan(y, kept[call.name], operation)] if call.name in kept else [y]
    if "MaxPool" in type(operation).__name__:
        return [_where_nan(operation(ops.cast(nan[0], y.dtype)) > 0, y)]
    moves = type(operation).__name__ in ("Permute", "Transpose", "Reshape")
    if len(xs) == 1 and not moves and not isinstance(y, (list, tuple)) and y.shape == xs[0].shape:
        return [_where_nan(nan[0], y)]
    return keras.tree.flatten(y)


def _is_depthwise(layer):
    """A grouped convolution with one input channel per group passes channels on as a depthwise one does."""
    return getattr(layer, "groups", 1) > 1 and layer.kernel.shape[-2] == 1


def _with_nan(y, kept, layer):
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else len(y.shape) - 1
    shape = [1] * len(y.shape)
    shape[axis] = y.shape[axis]
    removed = np.ones(y.shape[axis], bool)
    removed[kept] = False
    return _where_nan(ops.convert_to_tensor(removed.reshape(shape)), y)


def _where_nan(mask, y):
    return ops.where(mask, ops.full_like(y, np.nan), y)
