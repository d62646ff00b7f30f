"""Reads what is inside an int8 .tflite file."""

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter


def convert(model):
    """The bytes of the int8 file of a QAT model, with int8 input and output."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


class Int8File:
    """An interpreter without delegates, so that every operator's own tensors can be read."""

    def __init__(self, content):
        # XNNPACK would replace the operators by one opaque node.
        self._interpreter = Interpreter(model_content=content, experimental_op_resolver_type=_without_delegates())
        self._interpreter.allocate_tensors()
        self.input = self._interpreter.get_input_details()[0]
        self.output = self._interpreter.get_output_details()[0]

    def predict(self, x):
        """Dequantized outputs for float inputs, one example at a time."""
        scale, zero_point = self.input["quantization"]
        quantized = np.clip(np.round(x / scale) + zero_point, -128, 127).astype("int8")
        outputs = []
        for example in quantized:
            self._interpreter.set_tensor(self.input["index"], example[None])
            self._interpreter.invoke()
            outputs.append(self._interpreter.get_tensor(self.output["index"])[0])
        scale, zero_point = self.output["quantization"]
        return (np.array(outputs, "float32") - zero_point) * scale

    def kernels(self):
        """The int8 weights (rank 2 or more) of all convolutions and dense layers, in the order of execution."""
        weighted = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        operators = [op for op in self._interpreter._get_ops_details() if op["op_name"] in weighted]
        return [self._interpreter.get_tensor(op["inputs"][1]) for op in operators]

    def operators(self):
        return [op["op_name"] for op in self._interpreter._get_ops_details()]

    def float_tensors(self):
        return [t["name"] for t in self._interpreter.get_tensor_details() if t["dtype"] is np.float32]


def _without_delegates():
    from ai_edge_litert.interpreter import OpResolverType

    return OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def sparsity(kernels):
    return 1 - sum(np.count_nonzero(k) for k in kernels) / sum(k.size for k in kernels)
