"""Rewrites a network into layers that the int8 runtime knows: scalings become 1x1 depthwise convolutions."""

import collections

import numpy as np

from tfcompress.keras2 import tf_keras, tfmot

_transformations = tfmot.quantization.keras.graph_transformations
_LayerNode = _transformations.transforms.LayerNode
_DROPOUTS = ("AlphaDropout", "Dropout", "GaussianDropout", *(f"SpatialDropout{n}D" for n in (1, 2, 3)))
_FOLDING = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


class Layout(tfmot.quantization.keras.QuantizeLayoutTransform):
    """TF-MOT's layout after seven rewritings, all exact in floats.

    Dropout does nothing: in tf_keras it has no state that a checkpoint could hold.

    A swish inside a convolution or dense layer, and a ReLU inside a transposed convolution, becomes a layer of its own:
    the runtime computes it from the int8 output of the layer, to which TF-MOT gives no range. An identity keeps
    TF-MOT from joining a transposed convolution with the ReLU behind it.

    BatchNorm behind a dense layer is folded into its weights: the converter does that for convolutions only.

    A separable convolution becomes a depthwise and a 1x1 one. TF-MOT does the same, but names them by a counter, as
    layers that nobody has named are: it takes a namesake for the layer that it has made.

    BatchNorm that no convolution can absorb (pre-activation networks) gets an identity 1x1 depthwise convolution in
    front, into which the converter folds it; Rescaling and Normalization become such a convolution themselves. As
    plain multiplications and additions they would stay float in the file: QAT puts no range between the two. Vectors
    pass such a BatchNorm as images of one pixel.
    """

    def apply(self, model, layer_quantize_map):
        channels = {layer.name: layer.input_shape[-1] for layer in model.layers if is_scaling(layer)}
        unfolded = unfolded_batch_norms(model)
        vectors = {name for name in unfolded if len(model.get_layer(name).input_shape) == 2}
        for transform, names in (
            (_WithoutDropout(), [layer.name for layer in model.layers if type(layer).__name__ in _DROPOUTS]),
            (_ActivationBehind(), [layer.name for layer in model.layers if _computes_activation_apart(layer)]),
            (_IdentityBehind(), [layer.name for layer in model.layers if _is_transposed(layer)]),
            (_FoldIntoDense(), folded_into_dense(model)),
            (_SplitSeparable(), [layer.name for layer in model.layers if _is_separable(layer)]),
            (_IdentityBeforeBatchNorm(vectors), unfolded),
            (_ScalingAsConvolution(channels), channels),
        ):
            # ModelTransformer reads an empty set of names as "every layer".
            if names:
                transformer = _transformations.model_transformer.ModelTransformer(
                    model, [transform], set(names), layer_quantize_map
                )
                model, layer_quantize_map = transformer.transform()
        default = tfmot.quantization.keras.default_8bit.Default8BitQuantizeLayoutTransform()
        return default.apply(model, layer_quantize_map)


def _computes_activation_apart(layer):
    if isinstance(layer, tf_keras.layers.Activation):
        return False
    activation = getattr(layer, "activation", None)
    return activation is tf_keras.activations.swish or (
        activation is tf_keras.activations.relu and _is_transposed(layer)
    )


def _is_transposed(layer):
    return isinstance(layer, tf_keras.layers.Conv2DTranspose)


def _is_separable(layer):
    return isinstance(layer, tf_keras.layers.SeparableConv2D)


def is_scaling(layer):
    return isinstance(layer, tf_keras.layers.Rescaling | tf_keras.layers.Normalization)


def unfolded_batch_norms(model):
    """The names of the BatchNorms that do not follow a linear convolution or dense layer read by them alone."""
    norms = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.BatchNormalization)]
    return [norm.name for norm in norms if folding_producer(norm, model) is None]


def folded_into_dense(model):
    """The names of the dense layers, and of the BatchNorms that follow them, that become one layer."""
    names = []
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            producer = folding_producer(layer, model)
            if isinstance(producer, tf_keras.layers.Dense):
                names += [producer.name, layer.name]
    return names


def folding_producer(norm, model):
    """The layer in front of a BatchNorm, if the BatchNorm can become part of it."""
    producer = norm.inbound_nodes[0].inbound_layers
    folds = (
        type(producer).__name__ in _FOLDING
        and set(np.ravel(norm.axis)) <= {-1, len(norm.input_shape) - 1}
        and producer.activation is tf_keras.activations.linear
        and len(producer.outbound_nodes) == 1
        and producer.name not in model.output_names
    )
    return producer if folds else None


class _WithoutDropout(_transformations.transforms.Transform):
    def pattern(self):
        return _transformations.transforms.LayerPattern("|".join(_DROPOUTS))

    def replacement(self, match_layer):
        match_layer.layer["config"]["rate"] = 0.0
        return match_layer


class _ActivationBehind(_transformations.transforms.Transform):
    def pattern(self):
        return _transformations.transforms.LayerPattern("|".join((*_FOLDING, "Conv2DTranspose")))

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        activation, config["activation"] = config["activation"], "linear"
        return _behind(match_layer, tf_keras.layers.Activation(activation, name=f"{config['name']}_{activation}"))


class _IdentityBehind(_transformations.transforms.Transform):
    def pattern(self):
        return _transformations.transforms.LayerPattern("Conv2DTranspose")

    def replacement(self, match_layer):
        name = match_layer.layer["config"]["name"]
        return _behind(match_layer, tf_keras.layers.Identity(name=f"{name}_identity"))


class _FoldIntoDense(_transformations.transforms.Transform):
    def pattern(self):
        dense = _transformations.transforms.LayerPattern("Dense")
        return _transformations.transforms.LayerPattern("BatchNormalization", inputs=[dense])

    def replacement(self, match_layer):
        dense, norm = match_layer.input_layers[0], match_layer
        weights, config = norm.weights, norm.layer["config"]
        scale = weights.get("gamma:0", 1) / np.sqrt(weights["moving_variance:0"] + config["epsilon"])
        bias = dense.weights.get("bias:0", 0)
        dense.weights["kernel:0"] = dense.weights["kernel:0"] * scale
        dense.weights["bias:0"] = (bias - weights["moving_mean:0"]) * scale + weights.get("beta:0", 0)
        dense.layer["config"]["use_bias"] = True
        return dense


class _SplitSeparable(_transformations.transforms.Transform):
    def pattern(self):
        return _transformations.transforms.LayerPattern("SeparableConv2D")

    def replacement(self, match_layer):
        config, weights = match_layer.layer["config"], match_layer.weights
        both = ("data_format", "trainable")
        first = ("kernel_size", "strides", "padding", "depth_multiplier", "dilation_rate", *both)
        second = ("filters", "activation", "use_bias", "bias_regularizer", "bias_constraint", "activity_regularizer")
        depthwise = tf_keras.layers.DepthwiseConv2D(
            **{key: config[key] for key in first},
            use_bias=False,
            depthwise_regularizer=config["depthwise_regularizer"],
            depthwise_constraint=config["depthwise_constraint"],
            name=f"{config['name']}_depthwise",
        )
        pointwise = tf_keras.layers.Conv2D(
            kernel_size=1,
            **{key: config[key] for key in (*second, *both)},
            kernel_regularizer=config["pointwise_regularizer"],
            kernel_constraint=config["pointwise_constraint"],
            name=config["name"],
        )
        bias = {"bias:0": weights["bias:0"]} if config["use_bias"] else {}
        result = _layer_node(pointwise, {"kernel:0": weights["pointwise_kernel:0"], **bias})
        result.input_layers = [_layer_node(depthwise, {"depthwise_kernel:0": weights["depthwise_kernel:0"]})]
        return result


class _IdentityBeforeBatchNorm(_transformations.transforms.Transform):
    def __init__(self, vectors):
        self._vectors = vectors

    def pattern(self):
        return _transformations.transforms.LayerPattern("BatchNormalization")

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        name, channels = config["name"], match_layer.weights["moving_mean:0"].size
        identity = _fixed_depthwise(f"{name}_identity", np.ones(channels))
        match_layer.input_layers = [identity]
        if name not in self._vectors:
            return match_layer
        config["axis"] = [3]
        identity.input_layers = [_layer_node(tf_keras.layers.Reshape((1, 1, channels), name=f"{name}_pixel"))]
        return _behind(match_layer, tf_keras.layers.Reshape((channels,), name=f"{name}_vector"))


class _ScalingAsConvolution(_transformations.transforms.Transform):
    def __init__(self, channels):
        self._channels = channels

    def pattern(self):
        return _transformations.transforms.LayerPattern("Rescaling|Normalization")

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        scale, offset = (_rescaling if match_layer.layer["class_name"] == "Rescaling" else _normalization)(match_layer)
        ones = np.ones(self._channels[config["name"]])
        return _fixed_depthwise(config["name"], scale * ones, offset * ones)


def _rescaling(node):
    config = node.layer["config"]
    return np.asarray(config["scale"]), np.asarray(config["offset"])


def _normalization(node):
    config = node.layer["config"]
    mean = np.ravel(node.weights["mean:0"] if config["mean"] is None else config["mean"])
    variance = np.ravel(node.weights["variance:0"] if config["variance"] is None else config["variance"])
    deviation = np.maximum(np.sqrt(variance), tf_keras.backend.epsilon())
    return (deviation, mean) if config["invert"] else (1 / deviation, -mean / deviation)


def _fixed_depthwise(name, scale, offset=None):
    """A LayerNode of a 1x1 depthwise convolution that is not trained: x * scale + offset, per channel."""
    layer = tf_keras.layers.DepthwiseConv2D(1, use_bias=offset is not None, trainable=False, name=name)
    weights = {"depthwise_kernel:0": scale.reshape(1, 1, -1, 1), "bias:0": offset}
    return _layer_node(layer, {key: value for key, value in weights.items() if value is not None})


def _behind(node, layer):
    """A LayerNode of a layer without weights that reads a node."""
    behind = _layer_node(layer)
    behind.input_layers = [node]
    return behind


def _layer_node(layer, weights=()):
    config = tf_keras.layers.serialize(layer, use_legacy_format=True)
    return _LayerNode(
        {**config, "name": layer.name},
        weights=collections.OrderedDict(weights),
        metadata={"quantize_config": None},
    )
