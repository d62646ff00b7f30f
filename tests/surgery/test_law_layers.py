"""The law of surgery for every kind of layer: a network around each, pruned by half."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from law import assert_law, lifelike

from tfcompress import UnsupportedLayerError, prune_channels, register_rule
from tfcompress.surgery import ChannelGraph, rules

IMAGE, SEQUENCE, VOLUME = (8, 8, 3), (12, 3), (4, 6, 6, 2)


def conv(x, width=8, **arguments):
    kind = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}[len(x.shape)]
    return kind(width, 3, padding="same", **{"activation": "relu", **arguments})(x)


def head(x):
    return layers.Dense(4)(x)


def unnamed(layer):
    """The layer with a name of its own network: one from before a `clear_session` could be taken."""
    config = layer.get_config()
    del config["name"]
    return type(layer).from_config(config)


def around(layer):
    """A network with the layer between two convolutions."""
    return lambda x: head(layers.Flatten()(conv(unnamed(layer)(conv(x)))))


def merged(layer):
    return lambda x: head(layers.Flatten()(conv(unnamed(layer)([conv(x), conv(x)]))))


def squeeze_and_excitation(x):
    x = conv(x)
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Reshape((1, 1, 8))(gate)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    return head(layers.Flatten()(layers.Multiply()([x, gate])))


def dense_gate(x):
    x = conv(x)
    gate = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    return head(layers.Flatten()(layers.Multiply()([x, gate])))


def spatial_gate(x):
    x = conv(x)
    return head(layers.Flatten()(conv(layers.Multiply()([x, conv(x, 1, activation="sigmoid")]))))


def joined_with_a_sigmoid(x):
    return head(conv(layers.Concatenate()([conv(x), conv(x, activation="sigmoid")])))


def joined_with_the_input(x):
    return head(conv(layers.Concatenate()([x, conv(x)])))


def stacked_rows(x):
    return head(conv(layers.Concatenate(axis=1)([conv(x), conv(x)])))


def pooling_of_moved_channels(x):
    return head(layers.Flatten()(layers.MaxPooling2D()(layers.Permute((3, 1, 2))(conv(conv(x))))))


def shared_convolution(x):
    shared = layers.Conv2D(8, 3, padding="same", activation="relu")
    return head(conv(shared(shared(conv(x)))))


def shared_normalization(x):
    shared = layers.BatchNormalization()
    return head(layers.Concatenate()([shared(conv(x)), conv(shared(conv(x)))]))


def shared_reshape(x):
    shared = layers.Reshape((64, 8))
    return head(layers.Concatenate(axis=-1)([shared(conv(x)), conv(shared(conv(x)))]))


def nested(x):
    inner_input = keras.Input((*x.shape[1:-1], 8))
    inner = keras.Model(inner_input, layers.Add()([conv(inner_input), inner_input]), name="inner")
    return head(conv(inner(inner(conv(x)))))


def nested_sequential(x):
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.BatchNormalization()], name="inner")
    return head(conv(inner(x)))


def nested_with_two_outputs(x):
    inner_input = keras.Input((8, 8, 3))
    inner = keras.Model(inner_input, [conv(inner_input), conv(inner_input, 6)])
    a, b = inner(x)
    return head(layers.Concatenate()([a, conv(b)]))


def raw_operations(x):
    x = ops.relu(conv(x, activation=None))
    gate = ops.sigmoid(layers.Conv2D(8, 1)(ops.mean(x, axis=[1, 2], keepdims=True)))
    x = ops.maximum(x * gate, 0.5 * x) / 2.0
    x = ops.concatenate([x, ops.square(conv(x))], axis=-1)
    x = ops.transpose(ops.transpose(x, (0, 3, 1, 2)), (0, 2, 3, 1))
    return head(ops.reshape(conv(x), (-1, 512)))


def raw_hard_sigmoid(x):
    x = conv(x)
    return head(conv(x * (layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))))


def split_and_rejoined(x):
    a, b = ops.split(conv(x), 2, axis=-1)
    return head(conv(layers.Concatenate()([b, conv(a, 4)])))


def split_at(x):
    a, b, c = ops.split(conv(x), [2, 5], axis=-1)
    return head(layers.Concatenate()([conv(b), a, conv(c)]))


def prelu_on_known_and_unknown_channels(x):
    prelu = layers.PReLU(shared_axes=[1, 2])
    return head(layers.Concatenate()([prelu(layers.LayerNormalization()(conv(x))), conv(prelu(conv(x)))]))


def sliced_rows(x):
    return head(conv(conv(x)[:, ::2, 1:]))


def attention(x):
    x = layers.Reshape((64, 8))(conv(x))
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return head(layers.Dense(6, activation="relu")(x))


def recurrent(x):
    return head(layers.Dense(6, activation="relu")(layers.LSTM(5)(layers.Conv1D(8, 3)(x))))


def many_maps(x):
    x = layers.Reshape((8, 8, 2, 4))(conv(x))  # splits the channels: freezes them
    x = layers.Reshape((8, 8, 8))(x)
    return head(conv(conv(x)))


def identity_padding(x):
    """The parameter-free shortcut, with uneven padding of the channels."""
    x = conv(x, 5)
    y = layers.Permute((3, 2, 1))(x)
    y = layers.ZeroPadding2D(((1, 2), (0, 0)))(y)
    y = layers.Permute((3, 2, 1))(y)
    return head(conv(layers.Add()([conv(x), y])))


def autoencoder(x):
    x = conv(x, strides=2)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    return layers.Conv2D(2, 1)(layers.UpSampling2D(2)(x))


def first_channels(x):
    return head(conv(conv(x)[..., :4]))


# name: (network, shape of its input, whether its first producer must have been pruned)
NETWORKS = {
    "conv1d": (around(layers.Conv1D(6, 3, dilation_rate=2)), SEQUENCE, True),
    "conv2d": (around(layers.Conv2D(6, 3, strides=2, use_bias=False)), IMAGE, True),
    "conv3d": (around(layers.Conv3D(6, 2)), VOLUME, True),
    "grouped": (around(layers.Conv2D(12, 3, groups=4, activation="relu")), IMAGE, True),
    "grouped-depthwise": (around(layers.Conv2D(16, 3, groups=8)), IMAGE, True),
    "transposed-1d": (around(layers.Conv1DTranspose(6, 3, strides=2)), SEQUENCE, True),
    "transposed-2d": (autoencoder, IMAGE, True),
    "transposed-3d": (around(layers.Conv3DTranspose(6, 2)), VOLUME, True),
    "depthwise-1d": (around(layers.DepthwiseConv1D(3, depth_multiplier=2)), SEQUENCE, True),
    "depthwise-2d": (around(layers.DepthwiseConv2D(3, depth_multiplier=3, activation="relu")), IMAGE, True),
    "separable-1d": (around(layers.SeparableConv1D(6, 3, depth_multiplier=2)), SEQUENCE, True),
    "separable-2d": (around(layers.SeparableConv2D(6, 3, depth_multiplier=2)), IMAGE, True),
    "dense-on-maps": (around(layers.Dense(6, activation="relu")), IMAGE, True),
    "batch-normalization": (around(layers.BatchNormalization()), IMAGE, True),
    "batch-normalization-plain": (around(layers.BatchNormalization(scale=False, center=False)), IMAGE, True),
    "prelu": (around(layers.PReLU()), IMAGE, True),
    "prelu-shared": (around(layers.PReLU(shared_axes=[1, 2])), IMAGE, True),
    "prelu-of-one": (around(layers.PReLU(shared_axes=[1, 2, 3])), IMAGE, True),
    "leaky-relu": (around(layers.LeakyReLU()), IMAGE, True),
    "elu": (around(layers.ELU()), IMAGE, True),
    "swish": (around(layers.Activation("swish")), IMAGE, True),
    "gelu": (around(layers.Activation("gelu")), IMAGE, True),
    "sigmoid": (around(layers.Activation("sigmoid")), IMAGE, False),
    "softmax": (around(layers.Activation("softmax")), IMAGE, False),
    "sparsemax": (around(layers.Activation("sparsemax")), IMAGE, False),
    "softmax-layer": (around(layers.Softmax()), IMAGE, False),
    "max-pooling": (around(layers.MaxPooling2D()), IMAGE, True),
    "pooling-of-moved-channels": (pooling_of_moved_channels, IMAGE, True),
    "average-pooling": (around(layers.AveragePooling1D(2)), SEQUENCE, True),
    "zero-padding": (around(layers.ZeroPadding2D(((1, 2), (0, 3)))), IMAGE, True),
    "zero-padding-1d": (around(layers.ZeroPadding1D(2)), SEQUENCE, True),
    "cropping": (around(layers.Cropping2D(1)), IMAGE, True),
    "up-sampling": (around(layers.UpSampling2D(2, interpolation="bilinear")), IMAGE, True),
    "dropout": (around(layers.SpatialDropout2D(0.5)), IMAGE, True),
    "rescaling": (around(layers.Rescaling(0.5)), IMAGE, True),
    "rescaling-with-offset": (around(layers.Rescaling(0.5, offset=1.0)), IMAGE, False),
    "rescaling-per-channel": (around(layers.Rescaling([0.5] * 8)), IMAGE, False),
    "layer-normalization": (around(layers.LayerNormalization()), IMAGE, False),
    "group-normalization": (around(layers.GroupNormalization(4)), IMAGE, False),
    "reshape": (around(layers.Reshape((4, 16, 8))), IMAGE, True),
    "reshape-open": (around(layers.Reshape((-1, 4, 8))), IMAGE, True),
    "reshape-flat": (lambda x: head(layers.Dense(6)(layers.Reshape((512,))(conv(x)))), IMAGE, True),
    "reshape-splits": (many_maps, IMAGE, False),
    "permute": (around(layers.Permute((2, 1, 3))), IMAGE, True),
    "permute-channels": (lambda x: head(layers.Permute((3, 1, 2))(conv(x))), IMAGE, False),
    "flatten": (lambda x: head(layers.Flatten()(conv(x))), IMAGE, True),
    "global-average": (lambda x: head(layers.GlobalAveragePooling2D()(conv(x))), IMAGE, True),
    "global-max-keepdims": (lambda x: head(layers.GlobalMaxPooling2D(keepdims=True)(conv(x))), IMAGE, True),
    "repeat-vector": (
        lambda x: head(layers.RepeatVector(3)(layers.GlobalAveragePooling2D()(conv(x)))),
        IMAGE,
        True,
    ),
    "add": (merged(layers.Add()), IMAGE, True),
    "subtract": (merged(layers.Subtract()), IMAGE, True),
    "multiply": (merged(layers.Multiply()), IMAGE, True),
    "average": (merged(layers.Average()), IMAGE, True),
    "maximum": (merged(layers.Maximum()), IMAGE, True),
    "minimum": (merged(layers.Minimum()), IMAGE, True),
    "concatenate": (merged(layers.Concatenate()), IMAGE, True),
    "concatenate-rows": (stacked_rows, IMAGE, True),
    "concatenate-sigmoid": (joined_with_a_sigmoid, IMAGE, True),
    "concatenate-input": (joined_with_the_input, IMAGE, True),
    "dot": (merged(layers.Dot(axes=-1)), SEQUENCE, False),
    "squeeze-and-excitation": (squeeze_and_excitation, IMAGE, True),
    "dense-gate": (dense_gate, IMAGE, True),
    "spatial-gate": (spatial_gate, IMAGE, True),
    "shared-convolution": (shared_convolution, IMAGE, True),
    "shared-normalization": (shared_normalization, IMAGE, True),
    "shared-reshape": (shared_reshape, IMAGE, True),
    "nested": (nested, IMAGE, True),
    "nested-sequential": (nested_sequential, IMAGE, True),
    "nested-two-outputs": (nested_with_two_outputs, IMAGE, True),
    "raw-operations": (raw_operations, IMAGE, True),
    "raw-hard-sigmoid": (raw_hard_sigmoid, IMAGE, True),
    "split": (split_and_rejoined, IMAGE, True),
    "split-at": (split_at, IMAGE, True),
    "shared-prelu": (prelu_on_known_and_unknown_channels, IMAGE, False),
    "maximum-over-rows": (lambda x: head(ops.max(conv(x), axis=(1, 2), initial=0.0)), IMAGE, True),
    "maximum-from-one": (lambda x: head(ops.max(conv(x), axis=(1, 2), initial=1.0)), IMAGE, False),
    "power": (lambda x: head(conv(conv(x) ** 2.0)), IMAGE, True),
    "power-of-zero": (lambda x: head(conv(conv(x) ** 0.0)), IMAGE, False),
    "sliced-rows": (sliced_rows, IMAGE, True),
    "clip": (lambda x: head(conv(ops.clip(conv(x), -1.0, 1.0))), IMAGE, True),
    "clip-per-channel": (lambda x: head(conv(ops.clip(conv(x), (-1.0,) * 8, (0.5,) * 8))), IMAGE, False),
    "sliced-channels": (first_channels, IMAGE, False),
    "zero-padded-shortcut": (identity_padding, IMAGE, True),
    "attention": (attention, IMAGE, False),
    "recurrent": (recurrent, SEQUENCE, False),
}


def examples(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(6, *shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_silenced(name):
    network, shape, prunable = NETWORKS[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, network(inputs))
    x = examples(shape)
    lifelike(model, x)
    something = bool(ChannelGraph(model).groups)
    if not something:
        assert not prunable
        return
    _, plan = assert_law(model, [x], ratio=0.5)
    first = next(iter(plan.kept))
    assert (len(plan.kept[first]) < plan.widths[first]) == prunable


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_no_piece_of_a_split_is_emptied(ratio):
    """However small its filters are."""
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, split_at(inputs))
    producer = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    producer.kernel.assign(np.array(producer.kernel) * np.r_[np.full(2, 0.01), np.ones(6)])
    _, plan = assert_law(model, [examples(IMAGE)], ratio=ratio)
    kept = plan.kept[producer.name]
    assert all(len(piece) for piece in np.split(kept, np.searchsorted(kept, [2, 5])))
    assert len(kept) == 3


class Residual(keras.Model):
    """A functional model with a `call` of its own."""

    def __init__(self, **arguments):
        inputs = keras.Input((8, 8, 8))
        super().__init__(inputs, layers.Conv2D(8, 3, padding="same")(inputs), **arguments)

    def call(self, x, training=None, mask=None):
        return super().call(x) + x


def test_model_with_a_call_of_its_own_is_a_layer_without_a_rule():
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, head(layers.Flatten()(conv(Residual(name="block")(conv(inputs)), name="last"))))
    with pytest.raises(UnsupportedLayerError, match=r"'block' \(Residual\): surgery does not know"):
        prune_channels(model, ratio=0.5)
    x = examples(IMAGE).astype("float32")
    pruned, plan = prune_channels(model, ratio=0.01, skip=["block"])
    np.testing.assert_allclose(pruned(x), model(x), atol=1e-5)
    _, plan = prune_channels(model, ratio=0.5, skip=["block"])
    assert [len(kept) for kept in plan.kept.values()] == [8, 4, 4]
    with pytest.raises(ValueError, match="a subclassed model"):
        prune_channels(model.get_layer("block"), ratio=0.5)


def test_channels_first():
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(8, 3, data_format="channels_first")(inputs)
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.PReLU(shared_axes=[2, 3])(x)
    x = layers.Concatenate(axis=1)([x, layers.Conv2D(6, 1, data_format="channels_first")(x)])
    x = layers.AveragePooling2D(2, data_format="channels_first")(x)
    y = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    outputs = [head(layers.Flatten(data_format="channels_first")(x)), head(y), head(layers.Flatten()(x))]
    model = keras.Model(inputs, outputs)
    graph = ChannelGraph(model)
    assert [len(group) for group in graph.groups] == [8, 6]
    pruned, plan = prune_channels(model, ratio=0.5)
    assert pruned.layers[1].kernel.shape == (3, 3, 3, 4)
    assert len(plan.kept) == 5
    assert all(np.array(a).shape == np.array(b).shape for a, b in zip(pruned.output_shape, model.output_shape))


def test_several_inputs_and_outputs():
    a, b = keras.Input(IMAGE, name="a"), keras.Input(SEQUENCE, name="b")
    x = layers.BatchNormalization()(conv(a))
    y = conv(b)
    gate = layers.Dense(8)(layers.GlobalAveragePooling1D()(y))
    x = layers.Multiply()([x, gate])
    model = keras.Model([a, b], [head(layers.Flatten()(conv(x))), layers.Conv1D(2, 1)(y)])
    x = [examples(IMAGE), examples(SEQUENCE, 1)]
    lifelike(model, x)
    _, plan = assert_law(model, x, ratio=0.5)
    assert sorted(len(kept) for kept in plan.kept.values()) == [2, 4, 4, 4, 4, 4]


def test_embedding():
    inputs = keras.Input((7,), dtype="int32")
    outputs = head(layers.Flatten()(conv(layers.Embedding(20, 10)(inputs))))
    pruned, _ = prune_channels(keras.Model(inputs, outputs), ratio=0.5)
    assert pruned.layers[1].embeddings.shape == (20, 5)
    np.testing.assert_array_equal(pruned(np.ones((1, 7), "int32")).shape, (1, 4))


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class ChannelScale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return self.scale * x


def with_layer(layer):
    inputs = keras.Input(IMAGE)
    return keras.Model(inputs, head(layers.Flatten()(conv(layer(conv(inputs))))))


def test_masks_are_whole():
    """Of padded sequences: Keras records the comparison with the padding as an operation."""
    words = keras.Input((12,), dtype="int32")
    x = layers.Dense(8, activation="relu", name="dense")(layers.Embedding(20, 10, mask_zero=True)(words))
    model = keras.Model(words, head(layers.GlobalAveragePooling1D()(x)))
    pruned, plan = prune_channels(model, ratios={"dense": 0.5})
    assert len(plan.kept["dense"]) == 4
    batch = np.random.default_rng(0).integers(0, 20, (6, 12))
    kernel, bias = model.get_layer("dense").get_weights()
    gone = np.setdiff1d(range(8), plan.kept["dense"])
    kernel[:, gone], bias[gone] = 0, 0
    model.get_layer("dense").set_weights([kernel, bias])
    np.testing.assert_allclose(pruned(batch), model(batch), atol=1e-6)


def test_masks_of_inputs_are_whole():
    inputs = keras.Input((6, 8)), keras.Input((6,), dtype="bool")
    x = layers.GlobalAveragePooling1D()(layers.Dense(4, name="dense")(inputs[0]), mask=inputs[1])
    pruned, _ = prune_channels(keras.Model(inputs, head(x)), ratio=0.5)
    assert pruned.get_layer("dense").units == 2
    pruned([np.zeros((2, 6, 8)), np.ones((2, 6), bool)])


def test_unknown_layer_is_an_error_that_names_it_and_the_way_out():
    with pytest.raises(UnsupportedLayerError, match=r"'mine' \(Doubled\).*skip=\['mine'\].*register_rule"):
        prune_channels(with_layer(Doubled(name="mine")), ratio=0.5)
    with pytest.raises(UnsupportedLayerError, match=r"\(Lambda\)"):
        prune_channels(with_layer(layers.Lambda(lambda x: x[..., ::-1])), ratio=0.5)


def test_skipping_an_unknown_layer_keeps_the_channels_around_it():
    _, plan = prune_channels(with_layer(Doubled(name="mine")), ratio=0.5, skip=["mine"])
    assert [len(kept) for kept in plan.kept.values()] == [8, 4, 4]


def test_rule_for_a_layer_of_ones_own():
    def channel_scale(call, graph):
        (x,) = rules.tensors(call)
        graph.label(call.name, call.operation.scale, {0: graph.along(x, -1)})
        return [x]

    register_rule(ChannelScale)(channel_scale)
    register_rule(Doubled)(rules.pass_through)
    for layer in (ChannelScale(), Doubled()):
        model = with_layer(layer)
        x = examples(IMAGE)
        lifelike(model, x)
        _, plan = assert_law(model, [x], ratio=0.5)
        assert [len(kept) for kept in plan.kept.values()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda call, graph: None, r"The rule of layer 'mine' must return a list of 1 tensors.*Received: None"),
        (lambda call, graph: [*rules.tensors(call), *rules.tensors(call)], "list of 1 tensors"),
        (rules.pass_through, r"weight 'scale' of layer 'mine' would be \(8,\) and must be \(4,\)"),
    ],
)
def test_rule_that_says_too_little_is_named(rule, message):
    known = register_rule(ChannelScale)(rule)
    try:
        with pytest.raises(ValueError, match=message):
            prune_channels(with_layer(ChannelScale(name="mine")), ratio=0.5)
    finally:
        rules._RULES.pop(ChannelScale)
    assert known is rule


def test_activation_with_weights_is_named():
    stack = [keras.Input(IMAGE), layers.Conv2D(4, 3, activation=layers.PReLU(name="slopes")), layers.Flatten()]
    with pytest.raises(UnsupportedLayerError, match=r"'slopes'.*make it a layer behind it"):
        prune_channels(keras.Sequential([*stack, layers.Dense(2)]), ratio=0.5)


def test_pruning_through_a_layer_normalization_must_be_asked_for():
    inputs = keras.Input((6,))
    outputs = layers.Dense(3)(layers.LayerNormalization()(layers.Dense(8)(inputs)))
    model = keras.Model(inputs, outputs)
    assert not ChannelGraph(model).groups
    register_rule(layers.LayerNormalization)(rules.silenced_normalization)
    try:
        pruned, _ = prune_channels(model, ratio=0.5)
    finally:
        register_rule(layers.LayerNormalization)(rules.mixing)
    assert pruned.layers[2].gamma.shape == (4,)


def test_quantized_layers_are_refused():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8, name="int8")(inputs)))
    model.get_layer("int8").quantize("int8")
    with pytest.raises(UnsupportedLayerError, match="'int8'"):
        prune_channels(model, ratio=0.5)
