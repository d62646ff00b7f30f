"""Quantization-aware training (TF-MOT)."""

from tfcompress.quantization.aware_training import calibrate, quantization_aware_training, quantize_wrap

__all__ = ["calibrate", "quantization_aware_training", "quantize_wrap"]
