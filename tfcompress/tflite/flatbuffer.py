"""What a phone needs of a .tflite file, and nothing else.

The converter writes for tools: names of every constant, the conversion's options, one empty buffer per activation, the
same zero points again and again. None of it changes an output.
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"


def read(data):
    """Unpacks the bytes of a .tflite file into a mutable `ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))


def write(model):
    """Packs a `ModelT` into the bytes of a .tflite file, storing equal vectors once."""
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    def __init__(self, size):
        super().__init__(size)
        self._vectors = {}

    def CreateNumpyVector(self, x):
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            if x.dtype == np.uint8:
                # The schema aligns buffers to 16 bytes (kernels load whole vectors); the generated Python does not.
                self.Prep(16, x.nbytes)
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


def strip(data, layer_names=None, input_names=(), output_name=None):
    """Removes what inference does not read. Outputs stay bit-identical.

    Args:
        data: bytes of a .tflite file.
        layer_names: function of a tensor's name and of whether an activation is fused into its operation. It returns
            the name of the layer whose output the tensor is, or None, and the names of all layers in the operation.
            The last tensor of each layer gets its name, so that files can be compared; apart from them only the
            inputs have names.
        input_names: names of the input tensors; the converter calls them after the operation that quantizes them.
        output_name: name of the output tensor; the converter calls it `Identity`.

    Returns:
        Bytes of the smaller file.
    """
    model = read(data)
    model.description, model.metadata, model.metadataBuffer, model.signatureDefs = None, None, None, None
    for graph in model.subgraphs:
        graph.name = None
        names = _names(model, graph, layer_names or (lambda *_: (None, ())))
        if output_name:
            # A sigmoid is an operation of its own, behind what would be called after the same layer.
            names = {index: name for index, name in names.items() if name != output_name}
            names.update(dict.fromkeys(graph.outputs, output_name))
        names.update(zip(graph.inputs, input_names))
        for index, tensor in enumerate(graph.tensors):
            tensor.name = names.get(index)
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
    _free_batch(model)
    _drop_unused_buffers(model)
    _drop_unused_codes(model)
    return write(model)


def _names(model, graph, layer_names):
    """{tensor index: name}; of several tensors of a layer the last is its output."""
    of_layer, owner = {}, {}
    for operator in graph.operators:
        if all(_is_constant(model, graph, index) for index in operator.inputs):
            continue  # float16 weights on their way to float32
        for index in operator.outputs:
            name, listed = layer_names(graph.tensors[index].name.decode(), bool(_fused_activation(operator)))
            if name is None:
                continue
            for source in map(owner.get, operator.inputs):
                if source != name and source in listed:
                    # The rest of that layer is fused into this one, so that its output appears nowhere: a BatchNorm
                    # without a convolution is a product here and a sum within the ReLU.
                    of_layer.pop(source, None)
            of_layer[name], owner[index] = index, name
    names = {index: name for name, index in of_layer.items()}
    names.update({index: graph.tensors[index].name for index in graph.inputs})
    return names


def _fused_activation(operator):
    return getattr(operator.builtinOptions, "fusedActivationFunction", schema.ActivationFunctionType.NONE)


def _is_constant(model, graph, index):
    return index < 0 or model.buffers[graph.tensors[index].buffer].data is not None


def _free_batch(model):
    """Makes Reshape take any batch: its constant target (1, 800) becomes (-1, 800), which is the same at batch 1."""
    for graph in model.subgraphs:
        users = {}
        for operator in graph.operators:
            for index in operator.inputs:
                users.setdefault(int(index), set()).add(code(model, operator))
        for operator in graph.operators:
            if code(model, operator) != schema.BuiltinOperator.RESHAPE:
                continue
            source, target = (graph.tensors[index] for index in operator.inputs[:2])
            data = model.buffers[target.buffer].data
            if data is None or users[int(operator.inputs[1])] != {schema.BuiltinOperator.RESHAPE}:
                continue
            shape = np.asarray(data, np.uint8).view(np.int32).copy()
            if len(shape) > 1 and shape[0] == 1 and source.shape[0] == 1 and -1 not in shape:
                shape[0] = -1
                target.buffer = _add_buffer(model, shape)
                operator.builtinOptions = None  # an older copy of the target


def code(model, operator):
    """The `schema.BuiltinOperator` that an operator of the model is."""
    entry = model.operatorCodes[operator.opcodeIndex]
    return max(entry.builtinCode, entry.deprecatedBuiltinCode)


def _add_buffer(model, array):
    buffer = schema.BufferT()
    buffer.data = array.view(np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _drop_unused_buffers(model):
    """Numbers the buffers anew; activations share buffer 0, which the schema reserves as the empty one."""
    buffers = [schema.BufferT()]
    numbers = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None:
                tensor.buffer = 0
                continue
            if tensor.buffer not in numbers:
                numbers[tensor.buffer] = len(buffers)
                buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = numbers[tensor.buffer]
    model.buffers = buffers


def _drop_unused_codes(model):
    """The converter lists the quantization of the float input that it then removes."""
    operators = [operator for graph in model.subgraphs for operator in graph.operators]
    used = sorted({operator.opcodeIndex for operator in operators})
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)
