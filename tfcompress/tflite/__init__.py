"""LiteRT files: write, evaluate, time and compare them."""

from tfcompress.tflite.benchmark import Latency, benchmark_interleaved, benchmark_tflite
from tfcompress.tflite.compare import Comparison, LayerSNR, compare
from tfcompress.tflite.evaluate import evaluate_tflite, predict_tflite
from tfcompress.tflite.export import TFLiteFile, export_tflite

__all__ = [
    "Comparison",
    "Latency",
    "LayerSNR",
    "TFLiteFile",
    "benchmark_interleaved",
    "benchmark_tflite",
    "compare",
    "evaluate_tflite",
    "export_tflite",
    "predict_tflite",
]
