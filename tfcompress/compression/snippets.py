"""Code that runs a compressed network: right for the shapes, types and scaling of one file.

Every function takes what `model.json` holds and returns text.
"""

import json
import math
import shlex

SCALINGS = {
    "0-1": ("pixels / 255", "{} / 255f"),
    "-1-1": ("pixels / 127.5 - 1", "{} / 127.5f - 1f"),
    "0-255": ("pixels", "{}"),
    "none": ("values", "{}"),
}
BENCHMARK = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/lite/tools/nightly/latest/"
    "android_aarch64_benchmark_model"
)
LITERT = "com.google.ai.edge.litert:litert:1.4.2"


def kotlin(model):
    """A Kotlin class for an Android app that classifies by the file."""
    source, target = model["input"], model["output"]
    values, classes = math.prod(source["shape"]), math.prod(target["shape"])
    argument, range_note = _argument(source)
    image = source["scaling"] != "none" and len(source["shape"]) == 3 and source["shape"][-1] in (1, 3)
    constants, read = "", "output.getFloat(4 * it)"
    put = f"input.putFloat({SCALINGS[source['scaling']][1].format('value')})"
    if source["dtype"] == "int8":
        constants += _kotlin_constants("INPUT", source)
        put = (
            f"val x = {SCALINGS[source['scaling']][1].format('value')}\n"
            "            input.put((round(x / INPUT_SCALE).toInt() + INPUT_ZERO_POINT).coerceIn(-128, 127).toByte())"
        )
    if target["dtype"] == "int8":
        constants += _kotlin_constants("OUTPUT", target)
        read = "(output.get(it) - OUTPUT_ZERO_POINT) * OUTPUT_SCALE"
    constants += "\n" if constants else ""
    imports = [
        "android.content.res.AssetManager",
        *(["android.graphics.Bitmap"] if image else []),
        "java.nio.ByteBuffer",
        "java.nio.ByteOrder",
        *(["kotlin.math.round"] if source["dtype"] == "int8" else []),
        "org.tensorflow.lite.Interpreter",
    ]
    return f"""// build.gradle.kts: dependencies {{ implementation("{LITERT}") }}
// Copy {model["file"]["name"]} to src/main/assets.
// Use: val classifier = Classifier(context.assets)
//      val {_outputs(target)} = classifier.classify({"classifier.pixels(bitmap)" if image else argument})
{"".join(f"import {name}{chr(10)}" for name in imports)}
{constants}class Classifier(assets: AssetManager) : AutoCloseable {{
    private val interpreter = Interpreter(load(assets))

    /** {_outputs(target).capitalize()} of {classes} classes. {argument}: {values} values, {range_note}. */
    fun classify({argument}: FloatArray): FloatArray {{
        require({argument}.size == {values}) {{ "{values} values are expected. Received: ${{{argument}.size}}" }}
        val input = buffer({values * _item_bytes(source)})
        for (value in {argument}) {{
            {put}
        }}
        input.rewind()
        val output = buffer({classes * _item_bytes(target)})
        interpreter.run(input, output)
        return FloatArray({classes}) {{ {read} }}
    }}
{_kotlin_image(source["shape"]) if image else ""}
    override fun close() = interpreter.close()

    private fun load(assets: AssetManager): ByteBuffer {{
        val bytes = assets.open({_kotlin_text(model["file"]["name"])}).use {{ it.readBytes() }}
        return buffer(bytes.size).apply {{ put(bytes); rewind() }}
    }}

    private fun buffer(size: Int): ByteBuffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())
}}
"""


def _kotlin_constants(name, tensor):
    return (
        f"private const val {name}_SCALE = {float(tensor['scale'])!r}f\n"
        f"private const val {name}_ZERO_POINT = {int(tensor['zero_point'])}\n"
    )


def _kotlin_image(shape):
    height, width, channels = shape
    if channels == 1:
        values = """return FloatArray(argb.size) {
            val color = argb[it]
            0.299f * (color shr 16 and 255) + 0.587f * (color shr 8 and 255) + 0.114f * (color and 255)
        }"""
    else:
        values = "return FloatArray(3 * argb.size) { (argb[it / 3] shr 16 - 8 * (it % 3) and 255).toFloat() }"
    return f"""
    /** The pixels of an image of any size, 0 to 255. */
    fun pixels(image: Bitmap): FloatArray {{
        val argb = IntArray({height * width})
        val software = image.copy(Bitmap.Config.ARGB_8888, false)
        Bitmap.createScaledBitmap(software, {width}, {height}, true)
            .getPixels(argb, 0, {width}, 0, 0, {width}, {height})
        {values}
    }}
"""


def _kotlin_text(text):
    return json.dumps(text).replace("$", "\\$")


def adb(model):
    """Shell lines that time the file on a phone."""
    name = model["file"]["name"]
    return f"""curl -O {BENCHMARK}
adb push android_aarch64_benchmark_model /data/local/tmp/benchmark_model
adb shell chmod +x /data/local/tmp/benchmark_model
adb push {shlex.quote(name)} /data/local/tmp/model.tflite
adb shell /data/local/tmp/benchmark_model --graph=/data/local/tmp/model.tflite --num_threads=1 --use_xnnpack=true
adb shell /data/local/tmp/benchmark_model --graph=/data/local/tmp/model.tflite --num_threads=1 --use_xnnpack=true \\
  --enable_op_profiling=true
"""


def python(model):
    """A Python script that classifies by the file."""
    source, target = model["input"], model["output"]
    argument, range_note = _argument(source)
    shape = ", ".join(str(size) for size in source["shape"]) + ("," if len(source["shape"]) == 1 else "")
    outputs = _outputs(target)
    scaled = SCALINGS[source["scaling"]][0]
    constants, quantize, dequantize = "", "", ""
    if source["dtype"] == "int8":
        constants += f"INPUT_SCALE, INPUT_ZERO_POINT = {float(source['scale'])!r}, {int(source['zero_point'])}\n"
        quantize = "    x = np.clip(np.round(x / INPUT_SCALE) + INPUT_ZERO_POINT, -128, 127).astype(np.int8)\n"
    if target["dtype"] == "int8":
        constants += f"OUTPUT_SCALE, OUTPUT_ZERO_POINT = {float(target['scale'])!r}, {int(target['zero_point'])}\n"
        dequantize = f"    {outputs} = ({outputs}.astype(np.float32) - OUTPUT_ZERO_POINT) * OUTPUT_SCALE\n"
    return f"""# pip install ai-edge-litert numpy
import json
import pathlib

import numpy as np
from ai_edge_litert.interpreter import Interpreter

{constants}interpreter = Interpreter(model_path={json.dumps(model["file"]["name"])})
interpreter.allocate_tensors()
source = interpreter.get_input_details()[0]["index"]
target = interpreter.get_output_details()[0]["index"]


def classify({argument}):
    \"""{outputs.capitalize()} of the classes for an array ({shape}), {range_note}.\"""
    {argument} = np.asarray({argument}, np.float32).reshape({shape})
    x = {scaled}
{quantize}    interpreter.set_tensor(source, x[None])
    interpreter.invoke()
    {outputs} = interpreter.get_tensor(target)[0]
{dequantize}    return {outputs}


{argument} = np.zeros(({shape}))  # yours here
{outputs} = classify({argument})
names = json.loads(pathlib.Path("model.json").read_text(encoding="utf-8"))["class_names"]
print(names[{outputs}.argmax()], {outputs}.max())
"""


def _argument(source):
    """Name of the argument in the code blocks, and what its values are."""
    if source["scaling"] == "none":
        return "values", "as the network was trained on"
    order = ", row by row" if len(source["shape"]) > 1 else ""
    return "pixels", f"0 to 255{order}" + (", channels last" if source["shape"][2:] in ([1], [3]) else "")


def _outputs(target):
    return "probabilities" if target["softmax"] else "logits"


def _item_bytes(tensor):
    return 1 if tensor["dtype"] == "int8" else 4
