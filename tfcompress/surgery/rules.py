"""How each kind of layer treats channels: one rule per kind, none per pair of layers.

A rule is a function `rule(call, graph)`: `call` is a `tfcompress.graph.Call` whose arguments hold a `Tensor` for each
Keras tensor; it labels weights, unites or freezes ids through the `ChannelGraph`, and returns a list with a `Tensor`
for each output (its shape is filled in by the graph).
"""

import functools
import math
import warnings
from dataclasses import replace

import keras
import numpy as np
from keras import layers

from tfcompress.errors import UnsupportedLayerError
from tfcompress.graph import is_channels_first
from tfcompress.profiling import STATISTICS
from tfcompress.surgery.tensor import Tensor

_RULES = {}
_KERAS_RULES = {}


def register_rule(*kinds):
    """Teaches surgery a layer of one's own. A decorator of a rule, or called with one of this module's rules.

    Args:
        *kinds: layer classes. A subclass needs a registration of its own: it may do something else.

    Returns:
        A function that registers a rule and returns it.

    Example:

    ```python
    register_rule(MyActivation)(tfcompress.surgery.rules.pass_through)

    @register_rule(ChannelScale)          # a layer with a weight `scale` of shape (channels,)
    def channel_scale(call, graph):
        (x,) = tensors(call)
        ids = graph.along(x, -1)
        graph.label(call.name, call.operation.scale, {0: ids})
        return [x]
    ```

    A layer whose constructor is told its width also calls `graph.resize`.
    """

    def register(rule):
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def find_rule(operation):
    """The rule for a layer or raw operation, or None. Quantized and LoRA layers have none."""
    kind = type(operation)
    if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
        return None
    if kind in _RULES:
        return _RULES[kind]
    return _KERAS_RULES.get(kind.__name__) if kind.__module__.startswith("keras.src.") else None


def tensors(call):
    """The `Tensor`s among the arguments of a call, in order."""
    return [x for x in keras.tree.flatten((call.args, call.kwargs)) if isinstance(x, Tensor)]


def _keras_rule(*names):
    """For classes that Keras does not export: raw operations, and layers inside `keras.applications`."""

    def register(rule):
        _KERAS_RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _result(x, axis, ids, quiet=None):
    return [Tensor(x.shape, axis, ids, x.quiet if quiet is None else quiet)]


def _frozen_outputs(call):
    return [Tensor(tuple(output.shape)) for output in call.outputs]


# Layers with weights.


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(call, graph):
    """A convolution. Channels of a grouped one are tied position by position, so that its groups stay equal."""
    layer, (x,) = call.operation, tensors(call)
    axis = _channel_axis(layer, x)
    ids = graph.consume(x, axis)
    inputs, groups = layer.kernel.shape[-2], layer.groups
    if groups > 1 and inputs == 1:
        return _depthwise_by_groups(call, graph, axis, ids)
    for group in range(1, groups):
        graph.unite(ids[:inputs], ids[group * inputs : (group + 1) * inputs])
    out = graph.produce(call.name, layer.kernel, -1, layer.filters // groups, repeats=groups)
    graph.label(call.name, layer.kernel, {-2: ids[:inputs], -1: out})
    return _biased_output(call, graph, x, axis, out, {"filters": out})


def _depthwise_by_groups(call, graph, axis, ids):
    """One input channel per group: each output channel lives with its input."""
    layer = call.operation
    out = np.repeat(ids, layer.filters // len(ids))
    graph.label(call.name, layer.kernel, {-1: out})
    return _biased_output(call, graph, tensors(call)[0], axis, out, {"filters": out, "groups": ids})


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(call, graph):
    layer, (x,) = call.operation, tensors(call)
    axis = _channel_axis(layer, x)
    ids = graph.consume(x, axis)
    out = graph.produce(call.name, layer.kernel, -2, layer.filters)
    graph.label(call.name, layer.kernel, {-1: ids, -2: out})
    return _biased_output(call, graph, x, axis, out, {"filters": out})


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_convolution(call, graph):
    layer, (x,) = call.operation, tensors(call)
    axis = _channel_axis(layer, x)
    ids = graph.consume(x, axis)
    out = np.repeat(ids, layer.depth_multiplier)
    graph.label(call.name, layer.kernel, {-2: ids})
    return _biased_output(call, graph, x, axis, out, {})


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(call, graph):
    layer, (x,) = call.operation, tensors(call)
    axis = _channel_axis(layer, x)
    ids = graph.consume(x, axis)
    out = graph.produce(call.name, layer.pointwise_kernel, -1, layer.filters)
    graph.label(call.name, layer.depthwise_kernel, {-2: ids})
    graph.label(call.name, layer.pointwise_kernel, {-2: np.repeat(ids, layer.depth_multiplier), -1: out})
    return _biased_output(call, graph, x, axis, out, {"filters": out})


@register_rule(layers.Dense)
def dense(call, graph):
    layer, (x,) = call.operation, tensors(call)
    ids = graph.consume(x, -1)
    out = graph.produce(call.name, layer.kernel, 1, layer.units)
    graph.label(call.name, layer.kernel, {0: ids, 1: out})
    return _biased_output(call, graph, x, len(x.shape) - 1, out, {"units": out})


@register_rule(layers.Embedding)
def embedding(call, graph):
    layer, (x,) = call.operation, tensors(call)
    graph.freeze(x, "read as an index")
    out = graph.produce(call.name, layer.embeddings, 1, layer.output_dim)
    graph.label(call.name, layer.embeddings, {1: out})
    graph.resize(layer, out, lambda kept: {"output_dim": kept(out)})
    return _result(x, len(x.shape), out, quiet=True)


def _biased_output(call, graph, x, axis, out, widths):
    """The common end of convolutions and dense layers: bias, configuration, activation."""
    layer = call.operation
    if layer.use_bias:
        graph.label(call.name, layer.bias, {0: out})
    if widths:
        graph.resize(layer, out, lambda kept: {key: kept(ids) for key, ids in widths.items()})
    elementwise, quiet = _behaviour(layer.activation)
    result = _result(x, axis, out, quiet)
    if not elementwise:
        graph.freeze(result[0], f"the activation of {call.name} mixes channels")
    return result


@register_rule(layers.BatchNormalization)
def batch_normalization(call, graph):
    """A silenced channel has zero gamma, beta and moving mean. Without gamma it reads zero if its input does."""
    layer, x = call.operation, tensors(call)[0]
    ids = graph.along(x, layer.axis)
    for name in ("gamma", "beta", *STATISTICS[layers.BatchNormalization]):
        if getattr(layer, name, None) is not None:
            graph.label(call.name, getattr(layer, name), {0: ids})
    return [replace(x, quiet=x.quiet or layer.scale)]


@register_rule(layers.PReLU)
def parametrised_relu(call, graph):
    (x,) = tensors(call)
    alpha = call.operation.alpha
    axis = len(x.shape) - 1 if x.ids is None else x.axis
    if alpha.shape[axis - 1] > 1:
        graph.label(call.name, alpha, {axis - 1: graph.along(x, axis)})
    return [x]


@_keras_rule("LayerScale")
def layer_scale(call, graph):
    layer, (x,) = call.operation, tensors(call)
    ids = graph.along(x, -1)
    graph.label(call.name, layer.gamma, {0: ids})
    graph.resize(layer, ids, lambda kept: {"projection_dim": kept(ids)})
    return [x]


# Layers that treat each channel on its own.


@register_rule(
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.ELU,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
@_keras_rule("StopGradient", "Cast", "StochasticDepth", "Copy")
def pass_through(call, graph):
    """Any layer without per-channel weights that maps zero to zero and each channel to itself."""
    x = tensors(call)[0]
    shape = getattr(call.operation, "noise_shape", None)
    if shape is not None and x.ids is not None and shape[x.axis] not in (1, None):
        before, after = shape[: x.axis], shape[x.axis :][1:]
        graph.resize(call.operation, x.ids, lambda kept: {"noise_shape": (*before, kept(x.ids), *after)})
    return [x]


@register_rule(layers.ReLU)
def relu(call, graph):
    layer, (x,) = call.operation, tensors(call)
    return [replace(x, quiet=x.quiet and (layer.threshold <= 0 or not layer.negative_slope))]


@register_rule(layers.Activation)
def activation(call, graph):
    (x,) = tensors(call)
    elementwise, quiet = _behaviour(call.operation.activation)
    return [replace(x, quiet=x.quiet and quiet)] if elementwise else mixing(call, graph)


@_keras_rule(
    *("Absolute", "Arctan", "Arcsinh", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Expm1", "Floor", "Gelu"),
    *("HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "Log", "Log1p", "LogSigmoid", "Negative"),
    *("Reciprocal", "Relu", "Relu6", "Round", "Rsqrt", "Selu", "Sigmoid", "Sign", "Silu", "Sin", "Sinh", "SoftShrink"),
    *("Softplus", "Softsign", "Sqrt", "Square", "Squareplus", "Tan", "Tanh", "TanhShrink", "Threshold"),
)
def elementwise_operation(call, graph):
    (x,) = tensors(call)
    if any(np.ndim(getattr(call.operation, name, 0)) for name in ("x_min", "x_max")):
        return mixing(call, graph)  # a Clip with bounds of their own for each channel
    at_zero = _at_zero(lambda zero: call.operation(zero))
    return [replace(x, quiet=x.quiet and at_zero == 0)]


@register_rule(layers.Rescaling)
def rescaling(call, graph):
    layer, (x,) = call.operation, tensors(call)
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return mixing(call, graph)
    return [replace(x, quiet=x.quiet and layer.offset == 0)]


# Layers that move positions.


@register_rule(
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
)
def spatial(call, graph):
    (x,) = tensors(call)
    return [x] if x.ids is None or x.axis == _channel_axis(call.operation, x) else mixing(call, graph)


@register_rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def zero_padding(call, graph):
    """Padding with zeros. Along the channels (a parameter-free shortcut), the new channels have ids of their own."""
    layer, (x,) = call.operation, tensors(call)
    channel_axis = _channel_axis(layer, x)
    if x.ids is None or x.axis == channel_axis:
        return [x]
    index = x.axis - (2 if channel_axis == 1 else 1)
    padding = layer.padding if isinstance(layer.padding[0], tuple) else (layer.padding,)
    before, after = (graph.fresh(count) for count in padding[index])

    def config(kept):
        new = [tuple(pair) for pair in padding]
        new[index] = (kept(before), kept(after))
        return {"padding": new if isinstance(layer.padding[0], tuple) else new[0]}

    graph.resize(layer, np.concatenate([before, after]), config)
    return _result(x, x.axis, np.concatenate([before, x.ids, after]))


@register_rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def global_pooling(call, graph):
    x, *masks = tensors(call)
    for mask in masks:
        graph.freeze(mask, f"{call.name} takes it for a mask")
    axis = _channel_axis(call.operation, x)
    return _result(x, axis if call.operation.keepdims else 1, graph.along(x, axis))


@_keras_rule("Mean", "Sum", "Max", "Min", "Amax", "Amin")
def reduction(call, graph):
    """A reduction over other axes than the channels'."""
    operation, (x,) = call.operation, tensors(call)
    rank = len(x.shape)
    axes = range(rank) if operation.axis is None else operation.axis
    axes = {axis % rank for axis in ([axes] if isinstance(axes, int) else axes)}
    if x.ids is None or x.axis in axes or 0 in axes:
        return mixing(call, graph)
    axis = x.axis if operation.keepdims else x.axis - sum(a < x.axis for a in axes)
    return _result(x, axis, x.ids, quiet=x.quiet and not getattr(operation, "initial", None))


@register_rule(layers.Flatten, layers.Reshape)
@_keras_rule("Reshape", "ExpandDims", "Squeeze")
def reshape(call, graph):
    """Follows every element. A reshape after which the channels are not along one axis freezes them."""
    layer, (x,) = call.operation, tensors(call)
    if x.ids is None:
        return _frozen_outputs(call)
    axis, ids = _reshaped(x, call.outputs[0].shape, getattr(layer, "data_format", None))
    if ids is None:
        return mixing(call, graph)
    key, batch = ("target_shape", 1) if isinstance(layer, layers.Reshape) else ("newshape", 0)
    target = getattr(layer, key, None)
    if target is not None and target[axis - batch] != -1:

        def config(kept):
            return {key: tuple(kept(ids) if i == axis - batch else size for i, size in enumerate(target))}

        graph.resize(layer, ids, config)
    return _result(x, axis, ids)


def _reshaped(x, shape, data_format):
    """(axis, ids) of the channels of a tensor after a reshape, or (None, None)."""
    old = [2 if size is None else size for size in x.shape[1:]]  # any size will do for an open one
    elements = np.broadcast_to(np.expand_dims(x.ids, [i for i in range(len(old)) if i != x.axis - 1]), old)
    if data_format == "channels_first":
        elements = np.moveaxis(elements, 0, -1)
    new = list(shape[1:])
    if new.count(None) == 1:
        known = math.prod(size for size in new if size is not None)
        new[new.index(None)] = elements.size // known if known else 0
    new = [2 if size is None else size for size in new]
    if math.prod(new) != elements.size:
        return None, None
    elements = elements.reshape(new)
    for axis in reversed(range(len(new))):
        line = np.moveaxis(elements, axis, -1).reshape(-1, new[axis])[:1]
        if (np.moveaxis(elements, axis, -1) == line).all():
            return axis + 1, line[0]
    return None, None


@register_rule(layers.Permute)
@_keras_rule("Transpose")
def permute(call, graph):
    layer, (x,) = call.operation, tensors(call)
    if x.ids is None:
        return _frozen_outputs(call)
    axes = (0, *layer.dims) if isinstance(layer, layers.Permute) else layer.axes or range(len(x.shape))[::-1]
    axes = [axis % len(x.shape) for axis in axes]
    return _result(x, axes.index(x.axis), x.ids) if axes[0] == 0 else mixing(call, graph)


@register_rule(layers.RepeatVector)
def repeat_vector(call, graph):
    (x,) = tensors(call)
    return _result(x, 2, graph.along(x, 1))


@_keras_rule("GetItem")
def get_item(call, graph):
    """Indexing that leaves the channels whole; other indexing freezes them, as its bounds are no configuration."""
    x = tensors(call)[0]
    key = call.kwargs["key"] if "key" in call.kwargs else call.args[1]
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    if x.ids is None or None in key:
        return mixing(call, graph)
    key = key if Ellipsis in key else [*key, Ellipsis]
    dots = key.index(Ellipsis)
    key[dots : dots + 1] = [slice(None)] * (len(x.shape) - len(key) + 1)
    if key[x.axis] != slice(None) or isinstance(key[0], int):
        return mixing(call, graph)
    return _result(x, x.axis - sum(isinstance(k, int) for k in key[: x.axis]), x.ids)


@_keras_rule("Split")
def split(call, graph):
    """Pieces of a tensor. Equal sections of the channels stay equal: they are tied position by position.

    Pieces of other sizes are groups of their own, so that none is emptied.
    """
    operation, (x,) = call.operation, tensors(call)
    sections = operation.indices_or_sections
    if x.ids is None or operation.axis % len(x.shape) != x.axis:
        return [x] * len(call.outputs)
    pieces = np.split(x.ids, sections)
    if isinstance(sections, int):
        for piece in pieces[1:]:
            graph.unite(pieces[0], piece)
    else:
        heads = [x.ids[:end] for end in sections]
        graph.resize(operation, x.ids, lambda kept: {"indices_or_sections": [kept(head) for head in heads]})
        for piece in pieces:
            graph.part(piece)
    return [replace(x, ids=piece) for piece in pieces]


# Layers with several inputs.


@register_rule(layers.Concatenate)
@_keras_rule("Concatenate")
def concatenate(call, graph):
    xs = tensors(call)
    axis = call.operation.axis % len(xs[0].shape)
    if all(x.ids is None for x in xs):
        return _frozen_outputs(call)
    if any(x.axis not in (axis, None) for x in xs):
        return _stack_positions(call, graph, xs, axis)
    quiet = any(x.quiet for x in xs if x.ids is not None)
    for x in xs:
        if quiet and not x.quiet:
            graph.freeze(x, "joined with channels that read zero when silenced, which it would not")
    return _result(xs[0], axis, np.concatenate([graph.along(x, axis) for x in xs]), quiet)


def _stack_positions(call, graph, xs, axis):
    """A concatenation along another axis than the channels', which are united if they are on one axis."""
    axes = {x.axis for x in xs}
    if len(axes) > 1:
        return mixing(call, graph)
    for x in xs[1:]:
        graph.unite(xs[0].ids, x.ids)
    return [replace(xs[0], quiet=all(x.quiet for x in xs))]


@register_rule(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
@_keras_rule("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Divide", "TrueDivide", "Power", "CustomScaleLayer")
def merge(call, graph):
    """Elementwise operations on several tensors: unites channels position by position, broadcasting included.

    A one-channel operand (a spatial gate) is frozen, not united, and an operand of which nothing is known freezes the
    others where it is as wide as they are.
    """
    xs = [_operand(x) for x in keras.tree.flatten((call.args, call.kwargs)) if x is not None]
    tracked = [x for x in xs if x.ids is not None]
    ends = {x.axis - len(x.shape) for x in tracked}
    if len(ends) != 1:
        return mixing(call, graph)
    end, shape = ends.pop(), call.outputs[0].shape
    wide = [x for x in xs if len(x.shape) >= -end and x.shape[end] == shape[end]]
    for x in tracked:
        if not any(x is w for w in wide):
            graph.freeze(x, "one channel is broadcast over many")
    if any(x.ids is None for x in wide):
        return mixing(call, graph)
    for x in wide[1:]:
        graph.unite(wide[0].ids, x.ids)
    quiet = _merge_is_quiet(call, xs, wide)
    return [Tensor(tuple(shape), len(shape) + end, wide[0].ids, quiet)]


def _operand(x):
    """A `Tensor` for any operand; a constant is one of which nothing is known, and quiet if it is zero."""
    if isinstance(x, Tensor):
        return x
    return Tensor(tuple(np.shape(x)), quiet=not np.any(np.asarray(x)))


def _merge_is_quiet(call, xs, wide):
    """Whether the result is zero where all wide operands are silenced."""
    silent = [any(x is w for w in wide) and x.quiet for x in xs]
    kind = type(call.operation).__name__
    if kind == "Multiply":
        return any(silent)
    if kind in ("Divide", "TrueDivide"):
        return silent[0] and not any(silent[1:])
    if kind == "Power":
        exponent = keras.tree.flatten((call.args, call.kwargs))[1]
        return silent[0] and not isinstance(exponent, Tensor) and bool(np.all(np.asarray(exponent) > 0))
    return all(s or (not x.shape and x.quiet) for s, x in zip(silent, xs))


# Layers that end what is known.


@register_rule(
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.RMSNormalization,
    layers.Softmax,
    layers.UnitNormalization,
)
@_keras_rule(
    *("All", "Any", "Argmax", "Argmin", "Argsort", "BroadcastTo", "Cumsum", "Einsum", "LogSoftmax", "Logsumexp"),
    *("Matmul", "Normalize", "NotEqual", "Pad", "Prod", "Repeat", "Resize", "Softmax", "Sort", "Stack", "Std", "Take"),
    *("Tile", "TopK", "Var", "Where"),
)
def mixing(call, graph):
    """Any layer that mixes channels or needs all of them (a statistic over channels): keeps what it reads whole."""
    for x in tensors(call):
        graph.freeze(x, f"{call.name} ({type(call.operation).__name__}) needs all its channels")
    return _frozen_outputs(call)


border = mixing
_BORDER = """
Attention AdditiveAttention MultiHeadAttention GroupQueryAttention Dot EinsumDense
RNN SimpleRNN GRU LSTM ConvLSTM1D ConvLSTM2D ConvLSTM3D Bidirectional TimeDistributed Masking
Normalization CategoryEncoding Discretization Hashing IntegerLookup StringLookup TextVectorization
CenterCrop Resizing RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation RandomZoom
"""
register_rule(*[getattr(layers, name) for name in _BORDER.split()])(border)


def silenced_normalization(call, graph):
    """Prunes through a LayerNormalization or RMSNormalization over the channels, whose statistics then change.

    Not used unless asked for, as the pruned network is then no longer the original with silenced channels:

    ```python
    register_rule(keras.layers.LayerNormalization)(silenced_normalization)
    ```
    """
    layer, (x,) = call.operation, tensors(call)
    ids = graph.along(x, -1)
    for name in ("gamma", "beta", "scale"):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            graph.label(call.name, variable, {0: ids})
    return [replace(x, quiet=True)]


# Helpers.


def _channel_axis(layer, x):
    """The axis that a spatial layer takes for the channels."""
    return 1 if is_channels_first(layer) else len(x.shape) - 1


@functools.lru_cache(maxsize=256)
def _behaviour(function):
    """(whether an activation function treats each element on its own, whether it maps zero to zero), by trying it."""
    if isinstance(function, layers.Layer) and type(function).build is not layers.Layer.build:
        raise UnsupportedLayerError(
            function, "has weights and is another layer's activation: make it a layer behind it"
        )
    a = np.array([[0.0, -1.5, 0.7, 2.0]], "float32")
    b = np.array([[0.0, -1.5, 3.1, -0.2]], "float32")

    def values(x):
        return keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x)))

    fa, fb = values(a), values(b)
    if fa.shape != a.shape or not np.array_equal(fa[:, :2], fb[:, :2]):
        return False, False
    # One that leaves few elements may have put 0 for the same ones of both; each alone, it does not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a softmax over one element
        elementwise = np.allclose(values(a.T).T, fa, rtol=1e-5, atol=1e-6)
    return elementwise, elementwise and float(fa[0, 0]) == 0.0


def _at_zero(function):
    return float(keras.ops.convert_to_numpy(function(keras.ops.zeros((1,))))[0])
