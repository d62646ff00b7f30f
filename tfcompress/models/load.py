"""Loading of the user's own model files, without running code that they bring."""

import json
import zipfile
import zlib
from pathlib import Path

import h5py
import keras
import numpy as np

from tfcompress.graph import arguments_of, copy_model, copy_operation, input_structure

_MODELS = ("Functional", "Model", "Sequential")
_NOT_LAYERS = ("Policy", "TFOpLambda", "__keras_tensor__", "__numpy__", "__tensor__", "__ellipsis__", "__slice__")
# Settings that layers of Keras 2 carry along from their base class, or that do not change what they compute.
_OBSOLETE = (
    "batch_input_shape",
    "groups",
    "implementation",
    "input_length",
    "kernel_constraint",
    "kernel_regularizer",
    "rng_type",
    "vocabulary_size",
)
_WAY_OUT = (
    "build it of stock Keras layers, or load it in Python with keras.saving.load_model and call the functions of "
    "tfcompress on it"
)


class ModelError(ValueError):
    """A model file that cannot be loaded: what is wrong with it, and what to do."""


def load_model(path):
    """Loads a model from a `.keras` or `.h5` file; code that the file brings (Lambda layers) is never run.

    Files of Keras 2 (tf_keras, TensorFlow up to 2.15) are translated to Keras 3, and the translation is checked: both
    models must give the same outputs for random inputs. A model of mixed precision computes in float32 afterwards.

    Args:
        path: of the file.

    Returns:
        A functional or Sequential `keras.Model`, built, not compiled.

    Raises:
        ModelError: no such file, not a Keras model, damaged, weights without a network, a subclassed model, a Lambda
            layer or a custom object, or a layer of Keras 2 that has no counterpart.

    Example:
        >>> load_model("model.keras").output_shape
        (None, 10)
    """
    path = Path(path)
    version, config = _read(path)
    if config["class_name"] not in _MODELS:
        raise ModelError(
            f"{path} holds a subclassed model ({config['class_name']}), whose layers cannot be traced. Expected a "
            "functional or Sequential model: rebuild it with keras.Model(inputs, outputs) and save that"
        )
    _check_stock(path, version, config)
    model = _from_keras2(path) if _is_keras2(version) else _load(path, keras.saving.load_model)
    if not getattr(model, "inputs", None):
        raise _not_built(path)
    return _in_float32(model)


def _not_built(path):
    return ModelError(
        f"{path} holds a model that has not been built. Begin it with keras.Input(shape), or call it on data once, "
        "and save it again"
    )


def _in_float32(model):
    """The model, or one of the same float32 weights where it computes in bfloat16 or float16."""

    def clone(layer):
        if not isinstance(layer, keras.Layer):
            return layer
        return copy_operation(layer, **({"dtype": "float32"} if _is_mixed(layer) else {}))

    if not any(map(_is_mixed, model._flatten_layers())):
        return model
    return copy_model(model, clone_function=clone, recursive=True)


def _is_mixed(layer):
    return layer.variable_dtype == "float32" != layer.compute_dtype


def _read(path):
    """The version of Keras that wrote the file, and the model's configuration."""
    if (path / "saved_model.pb").exists():
        raise ModelError(
            f"{path} is a SavedModel, which keeps the computation but not the layers. Expected a .keras or .h5 file: "
            "save the original model with model.save('model.keras')"
        )
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Expected a .keras or .h5 file, written by model.save('model.keras')")
    if not path.exists():
        raise ModelError(f"{path}: no such file. Expected a .keras or .h5 file")
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ModelError(
            f"{path}: unknown kind of file {path.suffix!r}. Expected a .keras or .h5 file, written by "
            "model.save('model.keras')"
        )
    version, config = _read_zip(path) if path.suffix == ".keras" else _read_hdf5(path)
    if not isinstance(config, dict) or not {"class_name", "config"} <= config.keys():
        raise ModelError(f"{path} does not describe a Keras model. Write it again with model.save('model.keras')")
    return version, config


def _read_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            stored = {name: archive.read(name) for name in ("metadata.json", "config.json") if name != damaged}
            weights = "model.weights.h5" in archive.namelist()
    except KeyError as error:
        raise ModelError(f"{path} is a zip file, but not a Keras model: {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise ModelError(
            f"{path} is damaged, cut short or not a Keras file ({error}). Copy it again, or write it again with "
            "model.save('model.keras')"
        ) from error
    if damaged or not weights:
        raise ModelError(
            f"{path} is damaged: {damaged or 'model.weights.h5'} in it {'has changed' if damaged else 'is missing'}. "
            "Copy it again, or write it again with model.save('model.keras')"
        )
    try:
        return str(json.loads(stored["metadata.json"])["keras_version"]), json.loads(stored["config.json"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is a zip file, but not a Keras model ({error})") from error


def _read_hdf5(path):
    try:
        with h5py.File(path) as file:
            attributes = {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in file.attrs.items()
                if name in ("model_config", "keras_version")
            }
    except OSError as error:
        raise ModelError(
            f"{path} is damaged, cut short or not a Keras file ({error}). Copy it again, or write it again with "
            "model.save('model.keras')"
        ) from error
    if "model_config" not in attributes:
        raise ModelError(
            f"{path} has no network in it, as a file of weights alone has none. Build the model in Python, call "
            "model.load_weights(path), and write it with model.save('model.keras')"
        )
    try:
        return str(attributes.get("keras_version", "2")), json.loads(attributes["model_config"])
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is damaged: its description of the model cannot be read ({error})") from error


def _check_stock(path, version, config):
    """Refuses what is not part of Keras before anything is built from the file."""
    for entry in _objects(config["config"]):
        class_name, settings = entry["class_name"], entry["config"]
        name = settings.get("name") if isinstance(settings, dict) else None
        what = f"layer {name!r} ({class_name})" if name else f"{class_name} {settings!r}"
        if class_name in ("Lambda", "__lambda__"):
            what = what if name else "a Python lambda"
            raise ModelError(f"{path}: {what} is Python code, which is not run; {_WAY_OUT}")
        if class_name == "TFOpLambda" and settings["function"] not in _OPERATORS:
            raise ModelError(
                f"{path}: {what} is the TensorFlow operation {settings['function']}, not a layer; build the model with "
                "a stock Keras layer in its place"
            )
        if not (_is_stock_of_keras2(entry) if _is_keras2(version) else _is_stock(entry)):
            raise ModelError(f"{path}: {what} is a custom object, or not part of Keras 3 any more; {_WAY_OUT}")


def _objects(value):
    """Every serialized object within a configuration."""
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _is_stock(entry):
    # Keras looks names up in its own modules only, public or not (the operation behind `x + y` is not).
    return _is_public(entry) or str(entry.get("module")).split(".")[0] == "keras"


def _is_stock_of_keras2(entry):
    # tf_keras would import any module that a file names, so nothing but public classes may reach it.
    module = str(entry.get("module", "keras"))
    if module == "tensorflow.python.ops.init_ops_v2":  # where those of EfficientNetV2 come from
        return hasattr(keras.initializers, entry["class_name"])
    return _is_public(entry) and module.split(".")[0] in ("keras", "tf_keras", "builtins")


def _is_public(entry):
    name = entry["class_name"]
    if name == "function":
        return hasattr(keras.activations, str(entry["config"]))
    modules = (keras.layers, keras.initializers, keras.regularizers, keras.constraints, keras.dtype_policies)
    return name in (*_MODELS, *_NOT_LAYERS) or any(hasattr(module, name) for module in modules)


def _is_keras2(version):
    return not version.startswith("3")


def _load(path, load):
    try:
        return load(path, compile=False, safe_mode=True)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded ({_first_line(error)}). Copy it again if it may be damaged; otherwise {_WAY_OUT}"
        ) from error


def _first_line(error):
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _from_keras2(path):
    from tfcompress.keras2 import tf_keras

    source = _load(path, tf_keras.models.load_model)
    if not getattr(source, "inputs", None):
        raise _not_built(path)
    config = _translate_model(path, source.get_config())
    try:
        model = (keras.Sequential if isinstance(source, tf_keras.Sequential) else keras.Model).from_config(config)
        _copy_weights(source, model)
    except Exception as error:
        raise ModelError(
            f"{path} was written by Keras 2 and cannot be translated to Keras 3 ({_first_line(error)}); build the "
            "model with Keras 3 and copy the weights"
        ) from error
    _check_same_outputs(path, source, model)
    return model


def _translate_model(path, config):
    # Keras 2 counts the calls of nested models from 1, Keras 3 from 0, which it corrects by itself for a Functional
    # model in output_layers only.
    nested = {entry["config"]["name"]: entry["class_name"] for entry in config["layers"]}
    first_call = {name: 1 for name, class_name in nested.items() if class_name in _MODELS}
    first_output = {name: 1 for name, class_name in nested.items() if class_name == "Sequential"}
    layers = [
        _translate(path, {**entry, "inbound_nodes": _translate_references(entry.get("inbound_nodes"), first_call)})
        for entry in config["layers"]
    ]
    # Keras 2 lists even a single input or output; Keras 3 would then expect lists of tensors.
    ends = {key: config[key] for key in ("input_layers", "output_layers") if key in config}
    ends = {key: names[0] if len(names) == 1 else names for key, names in ends.items()}
    return {**config, **_translate_references(ends, first_output), "layers": layers}


def _translate_references(value, first):
    """References [layer name, call, output], however nested, with the names and numbers of Keras 3."""
    if isinstance(value, dict):
        return {key: _translate_references(item, first) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
        name, call, *others = value
        return [_translate_name(name), call - first.get(name, 0), *_translate_references(others, first)]
    return [_translate_references(item, first) for item in value]


def _translate_name(name):
    return name.replace("/", "_")


def _translate(path, entry):
    """A layer's configuration, as Keras 2 writes it, with what Keras 3 calls otherwise or does not know any more."""
    class_name, config = entry["class_name"], dict(entry["config"])
    config["name"] = _translate_name(config["name"])
    # Without its module, Keras 3 reads a configuration as one of Keras 2.
    entry = {"class_name": class_name, "name": config["name"], "inbound_nodes": entry["inbound_nodes"] or []}
    if class_name in _MODELS:
        return {**entry, "config": _translate_model(path, config)}
    if class_name == "TFOpLambda":
        return _translate_operator(path, {**entry, "config": config})
    if class_name == "InputLayer":
        config["batch_shape"] = config.pop("batch_input_shape")
    if class_name == "LeakyReLU":
        config["negative_slope"] = config.pop("alpha")
    if isinstance(config.get("dtype"), dict):
        config["dtype"] = config["dtype"]["config"]["name"]
    known = arguments_of(getattr(keras.layers, class_name))
    unknown = {key: value for key, value in config.items() if key not in known}
    lost = {
        key: value
        for key, value in unknown.items()
        if value not in (None, False) and key not in _OBSOLETE and not key.endswith("_initializer")
    }
    if lost:
        raise ModelError(
            f"{path}: layer {config['name']!r} ({class_name}) of Keras 2 has settings that Keras 3 lacks: {lost}; "
            "build the model without them"
        )
    return {**entry, "config": {key: value for key, value in config.items() if key in known}}


def _translate_operator(path, entry):
    """`x + y`, `x * 0.5`, ... as a merge layer, or as a Rescaling where one of the two is a number."""
    config = entry["config"]
    merge, rescaling = _OPERATORS[config["function"]]
    identity = {"name": config["name"], "dtype": config["dtype"]}
    a, b = entry["inbound_nodes"][0][:3], entry["inbound_nodes"][0][3].get("y")
    if a[0] == "_CONSTANT_VALUE" and config["function"] in _COMMUTATIVE:
        a, b = b, a[2]
    called_once_on_a_tensor = len(entry["inbound_nodes"]) == 1 and a[0] != "_CONSTANT_VALUE"
    if called_once_on_a_tensor and isinstance(b, int | float):
        scale, offset = rescaling(b)
        settings = {**identity, "scale": scale, "offset": offset}
        return {**entry, "class_name": "Rescaling", "config": settings, "inbound_nodes": [[[*a, {}]]]}
    if called_once_on_a_tensor and merge and isinstance(b, list) and isinstance(b[0], str):
        return {**entry, "class_name": merge, "config": identity, "inbound_nodes": [[[*a, {}], [*b, {}]]]}
    raise ModelError(
        f"{path}: layer {config['name']!r} is the TensorFlow operation {config['function']} on something else than two "
        "tensors, or a tensor and a number; build the model with stock Keras layers in its place"
    )


def _copy_weights(source, target):
    for layer in source.layers:
        counterpart = target.get_layer(_translate_name(layer.name))
        if hasattr(layer, "layers"):
            _copy_weights(layer, counterpart)
        elif layer.weights:
            counterpart.set_weights(layer.get_weights())
            if isinstance(counterpart, keras.layers.Normalization):
                counterpart.finalize_state()  # It computes with a copy of its weights, made here.


def _check_same_outputs(path, source, target, tolerance=1e-4):
    rng = np.random.default_rng(0)
    # Two examples, of size 64 where the model takes any; as integers, they are 0 and 1.
    shapes = [[2, *(size or 64 for size in x.shape[1:])] for x in source.inputs]
    inputs = [rng.uniform(0, 2, shape).astype(x.dtype.name) for x, shape in zip(source.inputs, shapes)]
    expected, got = (
        [np.asarray(output, "float32") for output in keras.tree.flatten(model(arguments, training=False))]
        for model, arguments in (
            (source, inputs[0] if len(inputs) == 1 else inputs),
            (target, keras.tree.pack_sequence_as(input_structure(target), inputs)),
        )
    )
    for a, b in zip(expected, got, strict=True):
        if not np.allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max()):
            raise ModelError(
                f"{path} was written by Keras 2, and its translation to Keras 3 computes something else (outputs up to "
                f"{np.abs(a).max():.3g} differ by {np.abs(a - b).max():.3g}); build the model with Keras 3 and copy "
                "the weights"
            )


# Operators on tensors in files of Keras 2: the merge layer, and scale and offset of the Rescaling for a number.
_OPERATORS = {
    "__operators__.add": ("Add", lambda number: (1.0, number)),
    "math.add": ("Add", lambda number: (1.0, number)),
    "math.multiply": ("Multiply", lambda number: (number, 0.0)),
    "math.subtract": ("Subtract", lambda number: (1.0, -number)),
    "math.truediv": (None, lambda number: (1 / number, 0.0)),
}
_COMMUTATIVE = ("__operators__.add", "math.add", "math.multiply")
