"""A user's model file is loaded with its weights, or refused in one line that says what to do."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers

from tfcompress.models import ModelError, load_model


def small(*stack):
    model = keras.Sequential([keras.Input((6, 6, 3)), *stack, layers.Flatten(), layers.Dense(4, name="head")])
    return keras.Model(model.inputs[0], model.outputs[0])


def refused(path):
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def rewritten(path, change):
    """The `.keras` file with its members changed, as a valid zip file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.keras"
    small(layers.Conv2D(5, 3)).save(path)
    return path


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_model_of_mixed_precision_goes_on_in_float32(tmp_path, rng, policy):
    inner_inputs = keras.Input((4, 4, 5))
    inner = layers.BatchNormalization(dtype=policy)(layers.Conv2D(6, 3, dtype=policy)(inner_inputs))
    inner = keras.Model(inner_inputs, inner)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(5, 3, dtype=policy, trainable=False)(inputs)
    x = layers.Flatten(dtype=policy)(0.5 + inner(2 * x))
    model = keras.Model(inputs, layers.Dense(4, dtype="float32")(x))
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert {layer.compute_dtype for layer in loaded._flatten_layers()} == {"float32"}
    assert [weight.trainable for weight in loaded.weights] == [weight.trainable for weight in model.weights]
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x = rng.normal(size=(3, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), atol=0.1)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("sequential", [True, False])
def test_loaded_model_computes_the_same(tmp_path, rng, name, sequential):
    model = small(layers.DepthwiseConv2D(3), layers.BatchNormalization())
    model = keras.Sequential(model.layers) if sequential else model
    model.compile("sgd", loss="mse")
    model.save(tmp_path / name)
    loaded = load_model(str(tmp_path / name))
    x = rng.normal(size=(3, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
    assert isinstance(loaded, keras.Sequential) == sequential and not loaded.compiled


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_lambda_is_refused_by_name(tmp_path, name):
    small(layers.Lambda(lambda x: 2 * x, name="double")).save(tmp_path / name)
    assert "layer 'double' (Lambda) is Python code" in refused(tmp_path / name)


class Custom(layers.Layer):
    def call(self, x):
        return x


def custom_activation(x):
    return x


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_custom_objects_are_refused_by_name(tmp_path, name):
    small(Custom(name="mine")).save(tmp_path / name)
    message = refused(tmp_path / name)
    assert "layer 'mine' (Custom) is a custom object" in message and "keras.saving.load_model" in message
    small(layers.Dense(3, activation=custom_activation)).save(tmp_path / name)
    assert "'custom_activation' is a custom object" in refused(tmp_path / name)


def test_operators_of_keras_3_are_stock(tmp_path):
    inputs = keras.Input((4,))
    keras.Model(inputs, inputs[:, 1:3] + 3.0).save(tmp_path / "model.keras")
    np.testing.assert_array_equal(load_model(tmp_path / "model.keras")(np.ones((1, 4))), np.full((1, 2), 4.0))


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_subclassed_model_is_refused(tmp_path):
    model = Subclassed()
    model(np.zeros((1, 4)))
    model.save(tmp_path / "model.keras")
    assert "subclassed model (Subclassed)" in refused(tmp_path / "model.keras")


def test_model_that_was_not_built_is_refused(tmp_path):
    keras.Sequential([layers.Dense(3)]).save(tmp_path / "model.keras")
    tf_keras.Sequential([tf_keras.layers.Dense(3)]).save(tmp_path / "model2.keras")
    assert "has not been built" in refused(tmp_path / "model.keras")
    assert "has not been built" in refused(tmp_path / "model2.keras")


def test_weights_alone_are_refused(tmp_path, saved):
    path = tmp_path / "model.weights.h5"
    small(layers.Conv2D(5, 3)).save_weights(path)
    assert "model.load_weights(path)" in refused(path)


def test_what_is_not_a_model_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.keras")
    assert "is a folder" in refused(tmp_path)
    for name in ("text.keras", "text.h5"):
        (tmp_path / name).write_text("not a model")
        assert "not a Keras file" in refused(tmp_path / name)
    (tmp_path / "model.onnx").touch()
    assert "unknown kind of file '.onnx'" in refused(tmp_path / "model.onnx")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a Keras model" in refused(tmp_path / "other.keras")


def test_saved_model_is_refused(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "saved_model.pb").touch()
    assert "is a SavedModel" in refused(folder)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_file_cut_short_is_refused(tmp_path, name, kept):
    path = tmp_path / name
    small(layers.Conv2D(5, 3)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "cut short" in refused(path)


def test_changed_byte_among_the_weights_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        weights = archive.getinfo("model.weights.h5")
    content[weights.header_offset + weights.compress_size // 2] ^= 1
    saved.write_bytes(content)
    assert "model.weights.h5 in it has changed" in refused(saved)


def test_damaged_parts_are_noticed(saved):
    rewritten(saved, lambda members: members.update({"model.weights.h5": members["model.weights.h5"][:3000]}))
    assert "cannot be loaded" in refused(saved)
    rewritten(saved, lambda members: members.pop("model.weights.h5"))
    assert "model.weights.h5 in it is missing" in refused(saved)
    rewritten(saved, lambda members: members.update({"config.json": b"{", "model.weights.h5": b""}))
    assert "not a Keras model" in refused(saved)
    rewritten(saved, lambda members: members.update({"config.json": b"[]"}))
    assert "does not describe a Keras model" in refused(saved)


def keras2_randomized(model):
    """Every weight has its own value, so that exchanged roles show; adapted statistics are left."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name not in ("mean:0", "variance:0", "count:0"):
            values = rng.normal(0, 0.5, weight.shape)
            weight.assign(np.abs(values) + 0.5 if "variance" in weight.name or "gamma" in weight.name else values)
    return model


def keras2_convolutions():
    inputs = tf_keras.Input((9, 9, 3))
    normalization = tf_keras.layers.Normalization()
    normalization.adapt([[1.0, 2.0, 3.0], [3.0, 4.0, 9.0]])
    x = tf_keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="block/depthwise")(normalization(inputs))
    x = tf_keras.layers.BatchNormalization(epsilon=0.02)(x)
    x = tf_keras.layers.SeparableConv2D(5, 3, activation="swish", kernel_regularizer="l2")(x)
    x = tf_keras.layers.LeakyReLU(0.17)(tf_keras.layers.Conv2DTranspose(4, 2)(x) - 0.1)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(4)(tf_keras.layers.Flatten()(x)))


def keras2_operators():
    inputs = tf_keras.Input((9, 9, 3))
    x = tf_keras.layers.Conv2D(3, 1)(inputs)
    return tf_keras.Model(inputs, 0.5 * (x * inputs + 1.0) - x / 4.0)


def keras2_transfer_learning():
    base_inputs = tf_keras.Input((9, 9, 3))
    base = tf_keras.Model(base_inputs, tf_keras.layers.BatchNormalization()(base_inputs), name="base")
    base.trainable = False
    scale = tf_keras.Sequential([tf_keras.layers.Rescaling(2.0)])
    inputs = tf_keras.Input((9, 9, 3))
    x = base(base(scale(inputs)), training=False)
    head = tf_keras.Sequential([tf_keras.layers.Flatten(), tf_keras.layers.Dense(4)])
    return tf_keras.Model(inputs, head(x))


def keras2_sequential():
    return tf_keras.Sequential(
        [tf_keras.layers.Conv2D(4, 3, input_shape=(9, 9, 3)), tf_keras.layers.PReLU(), tf_keras.layers.Flatten()]
    )


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("build", [keras2_convolutions, keras2_operators, keras2_transfer_learning, keras2_sequential])
def test_model_of_keras_2_computes_the_same(tmp_path, rng, build, suffix):
    model = keras2_randomized(build())
    path = tmp_path / f"model{suffix}"
    model.save(path)
    loaded = load_model(path)
    x = rng.normal(size=(3, 9, 9, 3)).astype("float32")
    expected = np.asarray(model(x))
    assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max(), "the outputs must depend on the inputs"
    np.testing.assert_allclose(loaded(x), expected, atol=1e-5 * np.abs(expected).max())
    assert isinstance(loaded, keras.Model) and loaded.input_shape == (None, 9, 9, 3)
    assert len(loaded.trainable_weights) == len(model.trainable_weights)


def keras2_tensorflow_initializers():
    """As EfficientNetV2 of tf.keras.applications has them."""
    normal, zeros = tf.random_normal_initializer(0.0, 0.02), tf.constant_initializer(0.0)
    dense = tf_keras.layers.Dense(4, kernel_initializer=normal, bias_initializer=zeros)
    return tf_keras.Sequential([tf_keras.Input((3,)), dense])


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_initializers_of_tensorflow_are_stock(tmp_path, suffix):
    model, path = keras2_tensorflow_initializers(), tmp_path / f"model{suffix}"
    model.save(path)
    np.testing.assert_allclose(load_model(path)(np.eye(3)), np.asarray(model(np.eye(3))), atol=1e-6)


def test_nothing_else_of_their_module_is_imported(tmp_path):
    path = tmp_path / "model.keras"
    for name, module in (("ops", "init_ops_v2"), ("Constant", "init_ops"), ("Constant", "init_ops_v2.ops")):
        keras2_tensorflow_initializers().save(path)

        def rename(members, name=name, module=module):
            config = json.loads(members["config.json"])
            initializer = config["config"]["layers"][1]["config"]["bias_initializer"]
            initializer.update(module=f"tensorflow.python.ops.{module}", class_name=name)
            members["config.json"] = json.dumps(config).encode()

        rewritten(path, rename)
        assert f"{name} {{'value': 0.0}} is a custom object" in refused(path)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_model_of_keras_2_with_named_inputs_computes_the_same(tmp_path, rng, suffix):
    a, b = tf_keras.Input((4,), name="a"), tf_keras.Input((5,), name="b")
    model = tf_keras.Model({"b": b, "a": a}, tf_keras.layers.Dense(2)(tf_keras.layers.Concatenate()([b, a])))
    model.save(tmp_path / f"model{suffix}")
    x = {name: rng.random((3, size), np.float32) for name, size in (("a", 4), ("b", 5))}
    np.testing.assert_allclose(load_model(tmp_path / f"model{suffix}")(x), np.asarray(model(x)), atol=1e-6)


def test_lambda_of_keras_2_is_refused(tmp_path):
    wrapped = tf_keras.layers.TimeDistributed(tf_keras.layers.Lambda(lambda x: x, name="same"))
    tf_keras.Sequential([tf_keras.Input((3, 4)), wrapped]).save(tmp_path / "model.h5")
    assert "layer 'same' (Lambda) is Python code" in refused(tmp_path / "model.h5")


def test_layers_that_keras_3_lacks_are_named(tmp_path):
    path = tmp_path / "model.h5"
    inputs = tf_keras.Input((4,))
    tf_keras.Model(inputs, tf_keras.layers.ThresholdedReLU(name="cut")(inputs)).save(path)
    assert "layer 'cut' (ThresholdedReLU)" in refused(path)
    tf_keras.Model(inputs, tf.nn.elu(inputs)).save(path)
    assert "TensorFlow operation nn.elu" in refused(path)
    tf_keras.Model(inputs, 1.0 - inputs).save(path)
    assert "math.subtract on something else" in refused(path)


def test_translation_that_computes_something_else_is_refused(tmp_path):
    """Keras 2's hard sigmoid is clip(0.2 x + 0.5, 0, 1), that of Keras 3 is relu6(x + 3) / 6."""
    model = tf_keras.Sequential([tf_keras.layers.Dense(4, activation="hard_sigmoid", input_shape=(3,))])
    model.save(tmp_path / "model.h5")
    assert "computes something else" in refused(tmp_path / "model.h5")


def test_foreign_module_in_a_file_of_keras_2_is_not_imported(tmp_path):
    path = tmp_path / "model.keras"
    keras2_sequential().save(path)

    def name_foreign_module(members):
        config = json.loads(members["config.json"])
        config["config"]["layers"][1].update(module="os", class_name="system")
        members["config.json"] = json.dumps(config).encode()

    rewritten(path, name_foreign_module)
    assert "(system) is a custom object" in refused(path)


def test_weights_that_do_not_fit_the_network_are_refused(tmp_path):
    path = tmp_path / "model.h5"
    keras2_sequential().save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"filters": 4', '"filters": 5')
    assert "cannot be loaded" in refused(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"][:100]
    assert "description of the model cannot be read" in refused(path)
