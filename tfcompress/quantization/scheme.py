"""The 8-bit scheme of TF-MOT, extended by the layers and the zeros that it does not keep."""

import collections

import numpy as np
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    prune_preserve_quantize_registry as prune_preserve,  # TF-MOT exports the scheme, not its quantizers
)

from tfcompress.errors import UnsupportedLayerError
from tfcompress.graph import layer_calls
from tfcompress.keras2 import tf_keras, tfmot
from tfcompress.keras2.activations import hard_silu
from tfcompress.quantization.layout import Layout, is_scaling, unfolded_batch_norms

_quantization = tfmot.quantization.keras
_layers = tf_keras.layers


class OutputQuantizeConfig(_quantization.QuantizeConfig):
    """Quantizes what a layer puts out, to int8 with a moving-average range; the layer has no weights to quantize."""

    def get_weights_and_quantizers(self, layer):
        return []

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_weights(self, layer, quantize_weights):
        pass

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return [
            _quantization.quantizers.MovingAverageQuantizer(
                num_bits=8, per_axis=False, symmetric=False, narrow_range=False
            )
        ]

    def get_config(self):
        return {}


class PassThroughQuantizeConfig(OutputQuantizeConfig):
    """For layers that only move values: their output has the range of their input."""

    def get_output_quantizers(self, layer):
        return []


_CONFIGS = {
    **dict.fromkeys(
        [_layers.Maximum, _layers.Minimum, _layers.Multiply, _layers.Subtract],
        OutputQuantizeConfig,
    ),
    # The int8 average pool keeps its input's scale; with a range of its own, as TF-MOT gives it, some networks do not
    # convert ("violate the same scale constraint").
    _layers.AveragePooling2D: PassThroughQuantizeConfig,
    _layers.Identity: PassThroughQuantizeConfig,
}

CUSTOM_OBJECTS = {config.__name__: config for config in (OutputQuantizeConfig, PassThroughQuantizeConfig)}


class Registry(_quantization.default_8bit.Default8BitQuantizeRegistry):
    """How each layer is quantized.

    Args:
        preserve_sparsity: whether weights that are zero now stay zero.
    """

    def __init__(self, preserve_sparsity):
        super().__init__()
        self._preserve_sparsity = preserve_sparsity

    def supports(self, layer):
        return type(layer) in _CONFIGS or super().supports(layer)

    def get_quantize_config(self, layer):
        if type(layer) in _CONFIGS:
            return _CONFIGS[type(layer)]()
        if isinstance(layer, _layers.Activation) and layer.activation is hard_silu:
            return OutputQuantizeConfig()
        config = super().get_quantize_config(layer)
        if self._preserve_sparsity and type(layer) in _PRUNE_PRESERVING:
            config.weight_quantizer = _PRUNE_PRESERVING[type(layer)]()
        return config


def check_supported(model):
    """Raises UnsupportedLayerError for the first layer that cannot be quantized; TF-MOT's own errors rarely name it."""
    registry = Registry(preserve_sparsity=False)
    unfolded = unfolded_batch_norms(model)
    calls = collections.Counter(layer.name for layer, _ in layer_calls(model))
    for layer in model.layers:
        if calls[layer.name] > 1:
            raise UnsupportedLayerError(
                layer, f"is called {calls[layer.name]} times, and int8 needs a range for each: make one layer per call"
            )
        if isinstance(layer, tf_keras.Model):
            raise UnsupportedLayerError(layer, "nested models cannot be quantized; build the network in one piece")
        if layer.compute_dtype != "float32":
            raise UnsupportedLayerError(
                layer,
                f"computes in {layer.compute_dtype}; build the model with dtype policy float32, and give it "
                "the weights of this one (set_weights)",
            )
        if layer.name in unfolded or is_scaling(layer):
            _check_per_channel(layer)
        elif not (isinstance(layer, _REWRITTEN) or registry.supports(layer)):
            raise UnsupportedLayerError(layer, "cannot be quantized; replace it, or quantize after training instead")
        if isinstance(layer, _layers.Add | _layers.Multiply) and len(layer.input) > 2:
            raise UnsupportedLayerError(
                layer,
                f"int8 adds and multiplies two tensors at a time. Received: {len(layer.input)}; make several layers",
            )
        _check_activation(layer, registry)


def _check_per_channel(layer):
    axes = getattr(layer, "axis", -1)
    last = len(layer.input_shape) - 1
    # A Rescaling or Normalization has one int8 scale for all channels: enough for three colours, not for features.
    vectors = not is_scaling(layer)
    if last not in ((1, 3) if vectors else (3,)) or set(np.ravel(axes)) - {-1, last}:
        raise UnsupportedLayerError(
            layer,
            f"int8 scales the channels of images{', and vectors,' if vectors else ''} along the last axis. "
            f"Received: input {layer.input_shape}, axis {axes}",
        )


def _check_activation(layer, registry):
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    if isinstance(layer, _layers.Activation):
        try:
            registry.get_quantize_config(layer).get_output_quantizers(layer)
        except ValueError as error:
            raise UnsupportedLayerError(layer, f"activation {name!r} cannot be quantized") from error
    elif isinstance(layer, _layers.ReLU):
        slope, most, threshold = float(layer.negative_slope), layer.max_value, float(layer.threshold)
        if slope or threshold or most not in (None, 6):
            raise UnsupportedLayerError(
                layer,
                f"int8 has ReLU and ReLU6 only. Received: negative_slope={slope:g}, max_value={most}, "
                f"threshold={threshold:g}; for a slope, use LeakyReLU",
            )
    elif activation is not None and name not in _FUSED_ACTIVATIONS:
        raise UnsupportedLayerError(layer, f"activation {name!r} cannot be fused; make it a layer of its own")


# Layers outside the registry that the layout takes care of.
_REWRITTEN = (_layers.InputLayer, _layers.BatchNormalization, _layers.SeparableConv2D)
_FUSED_ACTIVATIONS = ("linear", "relu", "sigmoid", "softmax", "swish", "tanh", "gelu")

# TF-MOT's own prune-preserving registry lets the zeros of depthwise kernels go, and does not know transposed ones.
_PRUNE_PRESERVING = {
    _layers.Conv2D: prune_preserve.PrunePreserveDefault8BitConvWeightsQuantizer,
    _layers.Conv2DTranspose: prune_preserve.PrunePreserveDefault8BitWeightsQuantizer,
    _layers.DepthwiseConv2D: prune_preserve.PrunePreserveDefault8BitConvWeightsQuantizer,
    _layers.Dense: prune_preserve.PrunePreserveDefault8BitWeightsQuantizer,
}


class Scheme(_quantization.QuantizeScheme):
    """TF-MOT's default 8-bit scheme (Jacob et al. 2018) with this package's `Layout` and `Registry`."""

    def __init__(self, preserve_sparsity=False):
        self._preserve_sparsity = preserve_sparsity

    def get_layout_transformer(self):
        return Layout()

    def get_quantize_registry(self):
        return Registry(self._preserve_sparsity)
