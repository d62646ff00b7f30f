"""tfcompress: make convolutional Keras networks small and fast enough for phones, and measure the result.

Names are imported on first use, so that `import tfcompress` loads neither Keras nor TensorFlow.
"""

import importlib

_MODULE_OF = {
    "TFLiteFile": "tflite",
    "Latency": "tflite",
    "benchmark_interleaved": "tflite",
    "benchmark_tflite": "tflite",
    "compare": "tflite",
    "evaluate_tflite": "tflite",
    "export_tflite": "tflite",
    "predict_tflite": "tflite",
    "Compressed": "compression.compress",
    "compress": "compression.compress",
    "Factorized": "low_rank",
    "LowRankPlan": "low_rank",
    "factorize": "low_rank",
    "as_logits": "outputs",
    "binarize": "quantization.binary",
    "quantization_aware_training": "quantization.aware_training",
    "share_weights": "quantization.weight_sharing",
    "sparsify": "sparsity",
    "sparsity_of": "sparsity",
    "ChannelGraph": "surgery",
    "Pruned": "surgery",
    "PruningPlan": "surgery",
    "apply_plan": "surgery",
    "criteria": "surgery.prune",
    "plan_pruning": "surgery",
    "prune_channels": "surgery",
    "recalibrate": "surgery",
    "register_rule": "surgery",
    "Sensitivity": "surgery.sensitivity",
    "sensitivity": "surgery.sensitivity",
    "Profile": "profiling",
    "profile": "profiling",
    "UnsupportedLayerError": "errors",
}

__all__ = sorted(_MODULE_OF)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tfcompress' has no attribute {name!r}; there are {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"tfcompress.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
