"""One walk over the calls of a Keras model, nested models included: profiling, surgery and recalibration share it."""

import hashlib
import inspect
import json
import types
from collections import Counter
from dataclasses import dataclass

import keras
import numpy as np

from tfcompress.datasets.arrays import as_float
from tfcompress.errors import UnsupportedLayerError

_UNDESCRIBED = (
    keras.layers.Lambda,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def clone_uncompiled(model, **options):
    """`keras.models.clone_model` without its attempt to compile the copy, which a loss of one's own would stop.

    Raises:
        ValueError: a model with a `call` of its own, which the copy would not have; with `recursive`, one inside, too.
    """
    _check_clonable(model, options.get("recursive", False))
    parts = [part for part in model._flatten_layers() if isinstance(part, keras.Model)]
    compiled = [part.compiled for part in parts]
    try:
        for part in parts:
            part.compiled = False
        return keras.models.clone_model(model, **options)
    finally:
        for part, was_compiled in zip(parts, compiled):
            part.compiled = was_compiled


def copy_model(model, **options):
    """What `clone_uncompiled` returns, with the weights of the model."""
    copy = clone_uncompiled(model, **{"clone_function": copy_operation, **options})
    copy_trainable(model, copy)
    copy_weights(model, copy)
    return copy


def copy_operation(operation, cls=None, **changes):
    """A copy of a layer, an operation or a model in a model, without its weights.

    Layers that no configuration describes, but which have none, stay themselves: a Lambda's function, and what a lookup
    or TextVectorization has learned by `adapt`, are not in theirs.

    Args:
        operation: the Keras layer or operation.
        cls: class of the copy, if another one.
        changes: entries of its configuration that are others.

    Raises:
        UnsupportedLayerError: no configuration describes it.
    """
    if isinstance(operation, _UNDESCRIBED):
        return operation
    if is_nested_model(operation):
        return clone_uncompiled(operation, clone_function=copy_operation)
    config = {**config_of(operation), **changes}
    try:
        copy = (cls or type(operation)).from_config(config)
    except TypeError as error:
        raise UnsupportedLayerError(
            operation, f"cannot be copied ({_reason(error)}): its get_config must return all arguments that it takes"
        ) from error
    copy.name = operation.name  # which the configuration of a layer of one's own may lack
    return copy


def config_of(operation):
    """`get_config`, but with the function itself that an activation is, where its name is another one's or nobody's.

    Raises:
        UnsupportedLayerError: no configuration describes it.
    """
    try:
        config = operation.get_config()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedLayerError(
            operation,
            f"cannot be copied ({_reason(error)}); give it functions, plain numbers and tuples, or what "
            "keras.saving.register_keras_serializable has registered",
        ) from error
    for name in ("activation", "recurrent_activation"):
        function = getattr(operation, name, None)
        if name in config and isinstance(function, types.FunctionType) and not _means(config[name], function):
            config[name] = function
    return config


def _reason(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _means(serialized, function):
    try:
        return keras.activations.get(serialized) is function
    except (TypeError, ValueError):
        return False


def copy_weights(source, target):
    """Gives a clone the weights of its model, and freezes those that are frozen by themselves.

    Raises:
        ValueError: a layer with weights is called in several models at once: in the clone each has its own.
    """
    if len(target.weights) != len(source.weights):
        parts = [part for part in source._flatten_layers() if isinstance(part, keras.Model)]
        owners = Counter(layer for part in parts for layer in {id(x): x for x in part.layers}.values())
        shared = [layer.name for layer, count in owners.items() if count > 1 and layer.weights]
        raise ValueError(
            f"Model {source.name!r} calls {', '.join(shared)} both inside and outside of a model that it calls, and no "
            "copy of it would share the weights. Call a layer in one model only"
        )
    target.set_weights(source.get_weights())
    copy_frozen(zip(source.weights, target.weights))
    take_statistics(target)


def paired_variables(old, new):
    """(variable, counterpart) for those of a layer or operation and of its copy.

    Raises:
        UnsupportedLayerError: the copy has other ones.
    """
    pair = [getattr(operation, "variables", []) for operation in (old, new)]
    if len(pair[0]) != len(pair[1]):
        raise UnsupportedLayerError(
            old,
            f"has {len(pair[0])} weights, and a copy made of its configuration {len(pair[1])}: its get_config must "
            "return all arguments that they depend on",
        )
    return list(zip(*pair))


def copy_frozen(pairs):
    """Freezes each weight whose original, the first of a pair, is frozen by itself: no config says so."""
    for old, new in pairs:
        if new.trainable != old.trainable:
            new.trainable = old.trainable


def copy_trainable(old, new):
    """Freezes what is frozen in the model that `new` was made of; layers are the same by name.

    A model's `trainable` is not cloned, and setting it overwrites that of its layers.
    """
    new.trainable = old.trainable
    layers = {layer.name: layer for layer in new.layers}
    for layer in old.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if is_nested_model(layer):
            copy_trainable(layer, layers[layer.name])
            continue
        for part, twin in zip(layer._flatten_layers(), layers[layer.name]._flatten_layers()):
            if twin.trainable != part.trainable:
                twin.trainable = part.trainable


def take_statistics(model):
    """Makes Normalization layers compute with the weights that they have been given: they keep copies of them."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def arguments_of(layer_class):
    """The names of the arguments that a layer of Keras 3 or tf_keras is made with.

    Python 3.11.2, for one, takes an inherited `__new__` for the signature of a class.
    """
    return {"name", "trainable", "dtype", *inspect.signature(layer_class.__init__).parameters}


@dataclass(frozen=True)
class Call:
    """One call of a layer or of a raw `keras.ops` operation.

    Attributes:
        name: path of the layer, "outer/inner" inside nested models.
        operation: the `keras.Layer` or `keras.Operation`.
        args, kwargs: the arguments of the call, with tensors replaced by the walk's values.
        inputs, outputs: a `KerasTensor` (shape and dtype) for each tensor that goes in and comes out.
    """

    name: str
    operation: object
    args: tuple
    kwargs: dict
    inputs: tuple
    outputs: tuple


def walk(model, values, visit, enter=None):
    """Visits the calls of a model in topological order.

    Args:
        model: a Sequential or functional Keras model that is built.
        values: one value of any type for each input of the model.
        visit: function of a `Call`, returns the list of values of its outputs.
        enter: function of a nested model and the list of its inputs' values, called before its layers are visited; what
            it puts into the list is what they get.

    Returns:
        The list of values of the model's outputs.

    Raises:
        ValueError: if the model is subclassed or not built.
    """
    return _walk(model, list(model_inputs(model)), values, visit, enter, "", {})[1]


def inlined(model, is_left_out=lambda operation: False):
    """A copy of a model in one piece: the layers of the models that it calls are its own, under their own names.

    Of two layers of one name, that of an inner model is called outer_inner. Of the call of a model only its inputs
    count: a base called with training=False, as for transfer learning, is in training when its layers are.

    Args:
        model: a Sequential or functional Keras model that is built.
        is_left_out: function of a layer or operation: whether the copy passes it by.

    Returns:
        The copy; the model itself where it calls none, nor has layers that are left out.

    Raises:
        ValueError: the model is subclassed or not built.
        UnsupportedLayerError: no configuration describes a layer.
    """
    operations = [operation for operation, _ in layer_calls(model)]
    if not any(is_nested_model(operation) or is_left_out(operation) for operation in operations):
        return model
    inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=producer(x)[0].name) for x in model_inputs(model)]
    copies, taken = {}, {operation.name for operation in operations} | {x.name for x in inputs}

    def name_of(path):
        *_, name = path.split("/")
        joined = path.replace("/", "_")
        names = (name, joined, *(f"{joined}_{i}" for i in range(1, len(taken) + 2)))
        return path if name == path else next(free for free in names if free not in taken)

    def visit(call):
        operation = call.operation
        if is_left_out(operation):
            return keras.tree.flatten((call.args, call.kwargs))[:1]
        if id(operation) not in copies:
            copy = copy_operation(operation)
            if copy is not operation:
                copy.name = name_of(call.name)
            taken.add(copy.name)
            copies[id(operation)] = operation, copy
        return keras.tree.flatten(copies[id(operation)][1](*call.args, **call.kwargs))

    outputs = walk(model, inputs, visit, enter=_as_taken)
    ends = [keras.tree.pack_sequence_as(end, x) for end, x in zip(_ends(model), (inputs, outputs))]
    flat = keras.Model(*ends, name=model.name)
    _copy_state(model, flat, copies.values())
    return flat


def _as_taken(model, values):
    """Gives the inputs of a nested model the type and rank that the model's call would give them."""
    for i, (x, value) in enumerate(zip(model.inputs, values)):
        if len(value.shape) == len(x.shape) + 1:
            value = keras.ops.squeeze(value, -1)
        elif len(value.shape) == len(x.shape) - 1:
            value = keras.ops.expand_dims(value, -1)
        values[i] = value if value.dtype == x.dtype else keras.ops.cast(value, x.dtype)


def _ends(model):
    return (model.inputs[0], model.outputs[0]) if isinstance(model, keras.Sequential) else (model.input, model.output)


def _copy_state(model, flat, pairs):
    """Gives the copies of layers their weights, and freezes those whose originals are frozen."""
    flat.trainable = model.trainable
    for old, new in pairs:
        if isinstance(old, keras.Layer):
            for part, twin in zip(old._flatten_layers(), new._flatten_layers()):
                twin.trainable = part.trainable
        variables = paired_variables(old, new)
        for source, target in variables:
            target.assign(source)
        copy_frozen(variables)
    take_statistics(flat)


def layer_names(model):
    """The names of all layers in topological order; those of a nested model "outer/inner"."""
    names = []

    def visit(call):
        names.append(call.name)
        return [None] * len(call.outputs)

    walk(model, [None] * len(model_inputs(model)), visit)
    return names


def model_inputs(model):
    """The model's input tensors, or a `ValueError` that says why it has none."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"The model must be a Sequential or functional Keras model; `tfcompress.models.load_model` reads "
            f"one from a file. Received: {type(model).__name__} {model!r:.80}"
        )
    if not is_nested_model(model):
        raise ValueError(
            f"The model must be a Sequential or functional Keras model, whose layers are known. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}, a subclassed model."
        )
    if not getattr(model, "inputs", None):
        raise ValueError(f"The model {model.name!r} is not built: give it an Input layer or call `build`.")
    return model.inputs


def network_of(model):
    """A digest of what a Keras 3 or tf_keras model computes with its weights: layers, settings and connections.

    The names of layers do not count, as Keras numbers those that nobody has named by how many there were before.
    """
    try:
        config = model.get_config()
    except NotImplementedError:  # a layer of the user's own
        config = [type(layer).__name__ for layer in model._flatten_layers()]
    config = json.loads(json.dumps(config, default=lambda value: type(value).__name__))
    numbers = {}

    def number(value):
        if isinstance(value, dict):
            if isinstance(value.get("name"), str):
                numbers.setdefault(value["name"], f"#{len(numbers)}")
            return {key: number(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [number(inner) for inner in value]
        return numbers.get(value, value) if isinstance(value, str) else value

    return hashlib.sha256(json.dumps(number(config), sort_keys=True).encode()).hexdigest()[:16]


def frozen_layers(model):
    """Names of the layers of a Keras 3 or tf_keras model whose weights no training changes."""
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer.name for layer in layers if layer.weights and not layer.trainable and not hasattr(layer, "layers")]


def layer_calls(model):
    """The calls of a functional or Sequential Keras 3 or tf_keras model in topological order; nested ones are one call.

    Returns:
        A list of (layer or raw operation, list of its output tensors).

    Raises:
        ValueError: the model is subclassed or not built.
    """
    if isinstance(model, keras.Model):
        model_inputs(model)
    elif not hasattr(model, "_nodes_by_depth"):
        raise ValueError(
            f"Model {model.name!r} is subclassed or not built: its layers are not known. Expected a functional or "
            "Sequential model with an Input"
        )
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    nodes = _nodes(model)
    return [(getattr(node, "operation", None) or node.layer, keras.tree.flatten(node.outputs)) for node in nodes]


def producer(tensor):
    """The operation that puts out a tensor of a Keras 3 or tf_keras model, and the first tensor that goes into it."""
    history = tensor._keras_history
    operation = getattr(history, "operation", None) or history.layer
    inputs = operation._inbound_nodes[history.node_index].input_tensors
    return operation, (keras.tree.flatten(inputs) or [None])[0]


def first_inputs(operation):
    """The tensors that go into the first call of an operation of a Keras 3 model."""
    return keras.tree.flatten(operation._inbound_nodes[0].input_tensors)


def as_inputs(model, x):
    """Examples as a list of arrays, one for each input of a model.

    Args:
        model: a Sequential or functional Keras model.
        x: what the model's `predict` takes: an array, or a list or dict of arrays; uint8 pixels are divided by 255
            where the model takes floats.

    Raises:
        ValueError: the model is subclassed or not built; arrays that are not one for each input, of its rank; other
            than whole numbers where the model takes integers.
    """
    specs = model_inputs(model)
    if isinstance(x, dict) and not isinstance(input_structure(model), dict):
        values = [x[spec.name] for spec in specs if spec.name in x]
    else:
        values = keras.tree.flatten(x)
    if len(values) != len(specs):
        received = ", ".join(map(str, x)) if isinstance(x, dict) else f"{len(values)} arrays"
        raise ValueError(
            f"x must hold an array for each input, {', '.join(spec.name for spec in specs)}. Received: {received}"
        )
    values = [_with_rank_of(spec, np.asarray(value)) for value, spec in zip(values, specs)]
    for value, spec in zip(values, specs):
        if "float" in spec.dtype or value.dtype.kind != "f":
            continue
        if not (np.isfinite(value) & (value == np.round(value))).all():
            raise ValueError(
                f"{spec.name} takes {spec.dtype}, and fractions would be cut off. Received: {value.dtype} from "
                f"{value.min():g} to {value.max():g}; give whole numbers (pixels: --scaling 0-255)"
            )
    return [as_float(value) if "float" in spec.dtype else value for value, spec in zip(values, specs)]


def _with_rank_of(spec, value):
    """An array with the last axis of one channel that it lacks, or without the one that it has, as Keras takes both."""
    rank = len(spec.shape)
    if value.ndim == rank - 1 and spec.shape[-1] == 1:
        return value[..., None]
    if value.ndim == rank + 1 and value.shape[-1] == 1:
        return value[..., 0]
    if value.ndim != rank or value.dtype == object:
        shape = ", ".join(map(str, spec.shape[1:]))
        raise ValueError(
            f"{spec.name} takes an array of shape (N, {shape}). Received: {value.dtype} of shape {value.shape}"
        )
    return value


def check_takes_floats(model):
    """Refuses a Keras 3 or tf_keras model with an input of integers, where pixels / 255 would become 0.

    Raises:
        ValueError: such an input.
    """
    for tensor in getattr(model, "inputs", None) or ():
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if "float" not in dtype:
            raise ValueError(
                f"Model {model.name!r} takes {dtype}, where pixels / 255 would become 0. Expected a model that takes "
                f"floats: call its layers on keras.Input({tuple(tensor.shape[1:])}), without its own division by 255"
            )


def input_structure(model):
    """The tensor, or the list or dict of tensors, that a Sequential or functional model is called on."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def is_nested_model(operation):
    """Whether the walk goes into this operation instead of visiting it.

    A model with a `call` of its own may compute anything with its layers: it is a layer like any other.
    """
    return (isinstance(operation, keras.Sequential) or _is_functional(operation)) and not _has_own_call(operation)


def _walk(model, tensors, values, visit, enter, prefix, names):
    """Walks one (nested) model. `tensors` are the specifications of its inputs in this call."""
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    specs = {id(x): tensor for x, tensor in zip(model.inputs, tensors)}
    value_of = {id(x): value for x, value in zip(model.inputs, values)}
    for node in _nodes(model):
        operation = node.operation
        name = names.setdefault(id(operation), prefix + operation.name)
        args, kwargs = node.arguments.fill_in(value_of)
        inputs = [specs[id(x)] for x in node.input_tensors]
        if is_nested_model(operation):
            given = node.arguments.fill_in(specs)
            inputs, inner_values = (_in_order(operation, *call) for call in (given, (args, kwargs)))
            if enter:
                enter(operation, inner_values)
            outputs, results = _walk(operation, inputs, inner_values, visit, enter, f"{name}/", names)
        else:
            outputs = _output_specs(node, specs, inputs)
            results = visit(Call(name, operation, args, kwargs, tuple(inputs), tuple(outputs)))
        for x, spec, result in zip(node.outputs, outputs, results):
            specs[id(x)], value_of[id(x)] = spec, result
    return [specs[id(x)] for x in model.outputs], [value_of[id(x)] for x in model.outputs]


def _in_order(model, args, kwargs):
    """What a model is called on, in the order of its inputs: of a dict, Keras takes them by name."""
    given = args[0] if args else kwargs["inputs"]
    if not isinstance(given, dict):
        return keras.tree.flatten(given)
    structure = input_structure(model)
    return [
        given[name] for name in (sorted(structure) if isinstance(structure, dict) else [x.name for x in model.inputs])
    ]


def _nodes(model):
    """The calls in topological order. Keras has no public list of them: this is the package's one private access."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def _output_specs(node, specs, inputs):
    """The output tensors; inside a nested model of open size called on a known size, with that size."""
    if all(_is_known(x) for x in node.outputs) or not all(_is_known(x) for x in inputs):
        return node.outputs
    args, kwargs = node.arguments.fill_in(specs)
    return keras.tree.flatten(node.operation.compute_output_spec(*args, **kwargs))


def _is_known(tensor):
    return None not in tensor.shape[1:]


def _is_functional(model):
    return isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth")


def _has_own_call(model):
    defined_by = next(kind for kind in type(model).__mro__ if "call" in vars(kind))
    return defined_by.__module__.split(".")[0] != "keras"


def _check_clonable(model, recursive):
    parts = model._flatten_layers() if recursive else [model]
    for part in parts:
        if isinstance(part, keras.Model) and _has_own_call(part):
            raise ValueError(
                f"{part.name!r} ({type(part).__name__}) is a model with a `call` of its own, which no copy of its "
                "layers has. Expected a functional or Sequential model"
            )


def is_channels_first(layer):
    """Whether a layer, of Keras 2 or 3, takes (N, C, ...) instead of (N, ..., C)."""
    return getattr(layer, "data_format", None) == "channels_first"
