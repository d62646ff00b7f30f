"""Networks made of every layer kind that can be quantized: their files are integer only and compute what QAT does."""

import keras
import numpy as np
import pytest
from int8_file import Int8File, convert
from keras import layers

from tfcompress import UnsupportedLayerError
from tfcompress.keras2 import tf_keras
from tfcompress.models import resnet
from tfcompress.quantization.aware_training import calibrate, quantize_wrap


def conv_bn(x, filters, activation, **options):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, **options)(x)
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def head(inputs, x, name):
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)), name=name)


def pre_activation():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", use_bias=False)(y)])
    x = layers.AveragePooling2D(2)(layers.Conv2D(8, 1)(x))
    y = layers.Conv2D(8, 3, padding="same")(layers.Activation("relu")(layers.BatchNormalization()(x)))
    x = layers.Add()([x, y])
    return head(inputs, layers.ReLU()(layers.BatchNormalization(scale=False)(x)), "pre_activation")


def mobile():
    """Scaled inputs, depthwise convolutions, hard swish, squeeze-and-excitation written with operators."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Rescaling(2.0, offset=-1.0)(inputs)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 1.0, 2.0])(x)
    x = conv_bn(x, 8, "hard_silu")
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    s = layers.GlobalAveragePooling2D(keepdims=True)(y)
    s = layers.Conv2D(8, 1)(layers.Conv2D(4, 1, activation="relu")(s))
    s = layers.ReLU(6.0)(s + 3.0) * (1.0 / 6.0)
    y = layers.Dropout(0.2)(layers.Multiply()([y, s]))
    return head(inputs, layers.Add()([x, y]), "mobile")


def inception():
    """Branches: swish, squeeze-and-excitation, separable, average pool of equal size, and what else merges tensors."""
    inputs = keras.Input((12, 12, 3))
    x = conv_bn(inputs, 6, "silu")
    gate = layers.Reshape((1, 1, 6))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(4, 1, activation="swish")(gate)
    gated = layers.Multiply()([x, layers.Conv2D(6, 1, activation="sigmoid")(gate)])
    separable = layers.SeparableConv2D(6, 3, padding="same", use_bias=False)(x)
    separable = layers.Activation("relu")(layers.BatchNormalization()(separable))
    pooled = layers.Conv2D(6, 1)(layers.AveragePooling2D(3, 1, padding="same")(x))
    merged = [layers.Maximum()([gated, pooled]), layers.Subtract()([separable, x])]
    merged += [layers.Minimum()([gated, separable]), layers.LeakyReLU(0.1)(gated)]
    return head(inputs, layers.Concatenate()(merged), "inception")


def branches():
    """Sums and products of more than two branches (Ding et al. 2021, "RepVGG": 3x3, 1x1 and identity)."""
    inputs = keras.Input((12, 12, 3))
    x = conv_bn(inputs, 8, "relu")
    y = [layers.BatchNormalization()(layers.Conv2D(8, size, padding="same", use_bias=False)(x)) for size in (3, 1)]
    x = layers.ReLU()(layers.Add(name="sum")([*y, layers.BatchNormalization()(x), layers.Conv2D(8, 1)(x)]))
    gates = [layers.Conv2D(8, 1, activation="sigmoid")(x) for _ in range(2)]
    return head(inputs, layers.Multiply(name="product")([x, *gates]), "branches")


def dense_bn():
    """The end of VGG16: BatchNorm behind dense layers, with and without biases and gammas."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Flatten()(conv_bn(inputs, 8, "relu", strides=3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(16)(x)))
    x = layers.BatchNormalization(scale=False)(layers.Dense(12, use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(5)(layers.Activation("relu")(x)), name="dense_bn")


def vectors():
    """BatchNorm of vectors that no dense layer can absorb, as in the heads of transfer learning."""
    inputs = keras.Input((12, 12, 3))
    x = layers.GlobalAveragePooling2D()(conv_bn(inputs, 8, "relu"))
    x = layers.Dense(16, activation="relu")(layers.BatchNormalization()(x))
    x = layers.Dropout(0.3)(layers.BatchNormalization(scale=False)(x))
    x = layers.BatchNormalization()(layers.LeakyReLU(0.3)(layers.Dense(24)(x)))
    return keras.Model(inputs, layers.Dense(5)(x), name="vectors")


def upsampling():
    """Transposed convolutions with a ReLU inside, behind, behind a BatchNorm, and beside other readers."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(conv_bn(inputs, 8, "relu"))
    x = layers.ReLU()(layers.Conv2DTranspose(8, 3, padding="same")(x))
    x = layers.Conv2DTranspose(8, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.Conv2DTranspose(8, 3, padding="same", activation="silu")(x)
    z = layers.Conv2DTranspose(8, 3, padding="same")(x)
    readers = [layers.Activation("relu")(z), layers.Conv2D(4, 3, padding="same", activation="relu")(z)]
    return head(inputs, layers.Concatenate()([y, z, *readers]), "upsampling")


def option_a():
    return resnet(8, input_shape=(12, 12, 3))


def settle(model):
    """Random gammas (some negative), betas and the statistics that belong to them; returns images with contrast."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 1, (32, 3, 3, 3))
    images = np.kron(coarse, np.ones((1, 4, 4, 1))).astype("float32")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
            if layer.scale:
                layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape) * rng.choice([1, 1, -1], layer.gamma.shape))
    model(images, training=True)
    return images


def noise_to_signal(expected, got):
    return np.std(expected - got) / np.std(expected - expected.mean(0))


@pytest.mark.parametrize(
    "network", [option_a, pre_activation, mobile, inception, branches, dense_bn, vectors, upsampling]
)
def test_file_computes_the_network_in_integers(network):
    keras.utils.set_random_seed(0)
    model = network()
    images = settle(model)
    wrapped = quantize_wrap(model)
    calibrate(wrapped, images, batch_size=16)
    simulated = wrapped.predict(images, verbose=0)
    assert noise_to_signal(model.predict(images, verbose=0), simulated) < 0.2
    file = Int8File(convert(wrapped))
    assert noise_to_signal(simulated, file.predict(images)) < 0.12
    assert file.float_tensors() == []
    assert file.input["quantization"] == (pytest.approx(1 / 255, rel=1e-7), -128)


def test_parts_of_a_separable_convolution_take_no_name_that_is_taken():
    """TF-MOT's take `conv2d` from a counter: in a new process, that of the first convolution that nobody has named."""
    keras.backend.clear_session()
    tf_keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    separable = layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, activation="silu", name="separable")
    model = head(inputs, layers.Add()([separable(x), layers.Conv2D(8, 1)(x)]), "two_branches")
    assert "conv2d" in [layer.name for layer in model.layers]
    images = settle(model)
    wrapped = quantize_wrap(model)
    calibrate(wrapped, images)
    assert noise_to_signal(model.predict(images, verbose=0), wrapped.predict(images, verbose=0)) < 0.1
    assert {"quant_conv2d", "quant_separable_depthwise", "quant_separable"} <= {layer.name for layer in wrapped.layers}


def shared_relu():
    """One ReLU behind two convolutions whose outputs differ in size by a factor of 1,000."""
    inputs = keras.Input((12, 12, 3))
    relu = layers.ReLU(name="relu")
    x = relu(layers.Conv2D(8, 3, name="small")(inputs))
    x = relu(layers.Conv2D(8, 3, name="large")(x))
    return head(inputs, x, "shared_relu")


def test_each_call_of_a_layer_without_weights_has_its_own_range():
    keras.utils.set_random_seed(0)
    model = shared_relu()
    model.get_layer("large").kernel.assign(1000 * model.get_layer("large").kernel)
    images = settle(model)
    wrapped = quantize_wrap(model)
    calibrate(wrapped, images)
    assert noise_to_signal(model.predict(images, verbose=0), wrapped.predict(images, verbose=0)) < 0.1
    ranges = [v for v in wrapped.variables if v.name.endswith("output_max:0") and "relu" in v.name]
    assert len(ranges) == 2 and ranges[1].numpy() > 100 * ranges[0].numpy()


def shared_convolution(library):
    inputs = library.Input((6, 6, 4))
    shared = library.layers.Conv2D(4, 3, padding="same", name="odd")
    return library.Model(inputs, shared(library.layers.ReLU()(shared(inputs))))


def shared_relu_of_keras_2():
    inputs = tf_keras.Input((6, 6, 4))
    shared = tf_keras.layers.ReLU(name="odd")
    return tf_keras.Model(inputs, shared(tf_keras.layers.Conv2D(4, 3)(shared(inputs))))


@pytest.mark.parametrize(
    "build", [lambda: shared_convolution(keras), lambda: shared_convolution(tf_keras), shared_relu_of_keras_2]
)
def test_other_layers_that_are_called_twice_are_refused(build):
    with pytest.raises(UnsupportedLayerError, match=r"'odd'.*is called 2 times.*one layer per call"):
        quantize_wrap(build())


@pytest.mark.parametrize("framework", [keras, tf_keras])
def test_dropout_is_off(framework):
    inputs = framework.Input((6, 6, 4))
    x = framework.layers.Dropout(0.5)(framework.layers.Conv2D(4, 3)(inputs))
    x = framework.layers.SpatialDropout2D(0.5, **({"seed": 1} if framework is keras else {}))(x)
    model = framework.Model(inputs, framework.layers.Dense(3)(framework.layers.Flatten()(x)))
    wrapped = quantize_wrap(model)
    images = np.random.default_rng(0).random((4, 6, 6, 4), dtype="float32")
    calibrate(wrapped, images)
    expected = wrapped(images, training=False).numpy()
    for _ in range(2):
        np.testing.assert_allclose(wrapped(images, training=True).numpy(), expected, atol=0.05)
    dropped = model(images, training=True)
    assert np.abs(np.array(dropped) - expected).max() > 0.2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16", "float64"])
def test_other_arithmetic_than_float32_is_refused_before_the_training(policy):
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization(dtype=policy)(layers.Conv2D(4, 3, dtype=policy, name="odd")(inputs))
    model = keras.Model(inputs, layers.Dense(3, dtype="float32")(layers.Flatten(dtype=policy)(x)))
    with pytest.raises(UnsupportedLayerError, match=r"'odd'.*computes in .*float.*dtype policy float32"):
        quantize_wrap(model)


def test_batch_normalization_over_rows_behind_a_convolution_is_refused():
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization(axis=1, name="odd")(layers.Conv2D(4, 3, padding="same")(inputs))
    with pytest.raises(UnsupportedLayerError, match=r"'odd'.*along the last axis\. Received: input .*6, 6, 4.*axis"):
        quantize_wrap(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


class Subclassed(tf_keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize("build", [Subclassed, lambda: tf_keras.Sequential([tf_keras.layers.Dense(3)])])
def test_models_whose_layers_are_not_known_are_refused(build):
    with pytest.raises(ValueError, match="is subclassed or not built"):
        quantize_wrap(build())


def unsupported(layer, shape=(6, 6, 4)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(2)(layer(inputs)))


def merge_of_three(layer):
    """In tf_keras, which is taken as it is; of a Keras 3 model, pairs are merged."""
    inputs = tf_keras.Input((6, 6, 4))
    return tf_keras.Model(inputs, layer([inputs, inputs, tf_keras.layers.ReLU()(inputs)]))


def test_models_inside_a_model_are_taken_apart_in_keras_3_and_refused_in_tf_keras(rng):
    conv = layers.Conv2D(2, 1, name="conv")
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.RandomFlip(), conv], name="odd")
    nested, flat = (keras.Sequential([keras.Input((6, 6, 4)), part, layers.ReLU()]) for part in (inner, conv))
    x = rng.random((8, 6, 6, 4), "float32")
    wrapped = [quantize_wrap(model) for model in (nested, flat)]
    for model in wrapped:
        calibrate(model, x)
    np.testing.assert_array_equal(*(model.predict(x, verbose=0) for model in wrapped))
    inner = tf_keras.Sequential([tf_keras.Input((6, 6, 4)), tf_keras.layers.Conv2D(2, 1)], name="odd")
    with pytest.raises(UnsupportedLayerError, match=r"'odd'.*nested models cannot be quantized"):
        quantize_wrap(tf_keras.Sequential([tf_keras.Input((6, 6, 4)), inner, tf_keras.layers.ReLU()]))


@pytest.mark.parametrize("merge", [tf_keras.layers.Add, tf_keras.layers.Multiply])
def test_what_would_stay_float_in_the_file_is_refused_before_the_training(merge):
    with pytest.raises(UnsupportedLayerError, match=r"'odd'.*Received: 3; make several layers"):
        quantize_wrap(merge_of_three(merge(name="odd")))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.LayerNormalization(name="odd"), (6, 6, 4)),
        (layers.PReLU(name="odd"), (6, 6, 4)),
        (layers.ReLU(negative_slope=0.1, name="odd"), (6, 6, 4)),
        (layers.ReLU(3.0, name="odd"), (6, 6, 4)),
        (layers.ReLU(threshold=0.2, name="odd"), (6, 6, 4)),
        (layers.BatchNormalization(name="odd"), (6, 4)),
        (layers.BatchNormalization(name="odd", axis=1), (6, 6, 4)),
        (layers.Rescaling(2.0, name="odd"), (4,)),
        (layers.Conv2D(4, 3, activation="relu6", name="odd"), (6, 6, 4)),
        (layers.Activation("softplus", name="odd"), (6, 6, 4)),
    ],
)
def test_what_cannot_be_quantized_is_named(layer, shape):
    with pytest.raises(UnsupportedLayerError, match="'odd'"):
        quantize_wrap(unsupported(layer, shape))
