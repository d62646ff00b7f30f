"""The report: its numbers by hand, on a made-up model.json; its Python block on real files."""

import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from tfcompress.compression.report import write_report

STEPS = (
    ("original", "original (float32)", "float32", 0.9912, 34826, 2300000, 141000, 130000, 0.12, 3.1),
    ("1-prune", "pruned", "float32", 0.1034, 13930, 900000, 58000, 52000, 0.07, 12.2),
    ("2-qat", "int8, trained (QAT)", "int8", 0.9898, 13930, 900000, 17000, 15000, 0.05, 340.4),
)
STEP_KEYS = ("name", "title", "precision", "top1", "params", "macs", "bytes", "gzip_bytes", "latency_ms", "seconds")


def _layer(i, before, after, macs=1000):
    return {
        "name": f"conv{i}",
        "kind": "Conv2D",
        "channels_before": before,
        "channels_after": after,
        "params_before": 10 * before,
        "params_after": 10 * after,
        "macs_before": 2 * macs,
        "macs_after": macs,
    }


@pytest.fixture
def model():
    return {
        "version": 1,
        "tfcompress": "0.1.0",
        "name": "mnist_convnet",
        "command": "tfcompress compress mnist_convnet.keras",
        "recipe": {"name": "small", "steps": [{"prune": {"criterion": "l2", "params_reduction": 0.6}}, {"qat": {}}]},
        "source": {"file": "mnist_convnet.keras", "sha256": "0123abcd"},
        "data": {"source": "mnist.npz", "train": 54000, "validation": 6000, "test": 10000},
        "input": {
            "name": "image",
            "shape": [28, 28, 1],
            "dtype": "int8",
            "scale": 1 / 255,
            "zero_point": -128,
            "scaling": "0-1",
        },
        "output": {"shape": [3], "dtype": "int8", "scale": 1 / 256, "zero_point": -128, "softmax": True},
        "class_names": ["cat", "dog", "tree"],
        "file": {
            "name": "model.tflite",
            "precision": "int8",
            "bytes": 17000,
            "gzip_bytes": 15000,
            "top1": 0.989,
            "top1_before": 0.992,
            "top1_of": "test",
            "latency_ms": 0.05,
        },
        "steps": [dict(zip(STEP_KEYS, step)) for step in STEPS],
        "layers": [_layer(1, 32, 20, macs=300), _layer(2, 64, 64, macs=900)],
        "environment": {"python": "3.11.7", "keras": "3.15.0", "tensorflow": "2.21.0", "cpu": "a CPU", "threads": 2},
    }


class Page(html.parser.HTMLParser):
    """Tables as rows of texts, code blocks by language, all attributes; checks that tags are closed in order."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.text, self.tables, self.code, self.attributes, self.tags = text, [], {}, [], set()
        self._open = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs).get("class")))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self._open]
        if "td" in tags or "th" in tags:
            self.tables[-1][-1][-1] += data
        elif tags[-1:] == ["code"]:
            language = self._open[-1][1]
            self.code[language] = self.code.get(language, "") + data

    def lead(self):
        return re.sub("<[^>]*>", "", re.search("<p class=lead>(.*?)</p>", self.text, re.S)[1])


def _page(model, folder):
    (folder / "model.json").write_text(json.dumps(model))
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_sentence_and_first_table_by_hand(model, tmp_path):
    page = _page(model, tmp_path)
    assert page.lead() == (
        "mnist_convnet is now 8.3 times smaller (141,000 → 17,000 bytes) and 2.4 times faster (0.120 → 0.050 ms); its "
        "top-1 accuracy fell by 0.30 points (99.20% → 98.90% on test images)."
    )
    assert page.tables[0] == [
        ["", "before", "after", "change"],
        ["File (bytes)", "141,000", "17,000", "8.3× smaller"],
        ["After gzip -9 (bytes)", "130,000", "15,000", "8.7× smaller"],
        ["Top-1, test images (%)", "99.20", "98.90", "−0.30 points"],
        ["Latency (ms)", "0.120", "0.050", "2.4× faster"],
        ["Parameters", "34,826", "13,930", "2.5× fewer"],
        ["MACs", "2,300,000", "900,000", "2.6× fewer"],
    ]


def test_steps_and_layers_by_hand(model, tmp_path):
    _, steps, channels, layers, slow, seconds = _page(model, tmp_path).tables[:6]
    assert steps[2] == [
        "1-prune", "pruned", "float32", "10.34", "13,930", "900,000", "58,000", "52,000", "0.070", "12.2 s",
    ]  # fmt: skip
    assert channels == [["conv1 Conv2D", "", "32 → 20"], ["conv2 Conv2D", "", "64"]]
    assert layers[1] == ["conv1", "Conv2D", "32 → 20", "320 → 200", "600 → 300"]
    assert slow == [["conv2 Conv2D", "", "75.0%"], ["conv1 Conv2D", "", "25.0%"]]
    assert seconds[2] == ["2-qat", "", "5 min 40 s"]


def test_what_got_worse_is_told(model, tmp_path):
    model["file"] |= {"bytes": 169200, "latency_ms": 0.126, "top1": 0.9931}
    page = _page(model, tmp_path)
    assert page.lead() == (
        "mnist_convnet is now 1.2 times larger (141,000 → 169,200 bytes) and 5.0% slower (0.120 → 0.126 ms); its "
        "top-1 accuracy rose by 0.11 points (99.20% → 99.31% on test images)."
    )
    assert page.tables[0][3][-1] == "+0.11 points"
    assert page.text.count("<strong class=worse>") == 2


def test_what_stayed_is_told(model, tmp_path):
    model["file"] |= {"bytes": 141000, "latency_ms": 0.12, "top1": 0.99202}
    lead = _page(model, tmp_path).lead()
    assert "as large as before (" in lead and "as fast as before (" in lead and "is unchanged (" in lead


def test_without_the_accuracy_before_the_steps_tell_it(model, tmp_path):
    del model["file"]["top1_before"]
    page = _page(model, tmp_path)
    assert page.lead().endswith(
        "fell by 0.14 points (99.12% → 98.98% on validation images). On test images the file reaches 98.90%."
    )
    assert page.tables[0][3:5] == [
        ["Top-1, validation images (%)", "99.12", "98.98", "−0.14 points"],
        ["Top-1, test images (%)", "–", "98.90", ""],
    ]


def test_every_text_is_escaped(model, tmp_path):
    nasty = "<b>&\"'${x}"
    model |= {"name": nasty, "command": nasty, "class_names": [nasty] * 3}
    model["file"]["name"] = model["steps"][1]["name"] = model["layers"][0]["name"] = model["layers"][0]["kind"] = nasty
    model["environment"]["cpu"] = model["source"]["file"] = model["data"]["source"] = model["input"]["name"] = nasty
    model["recipe"]["name"] = model["recipe"]["steps"][0]["prune"]["criterion"] = nasty
    page = _page(model, tmp_path)
    assert "<b>" not in page.text and not re.search(r"&(?!amp;|lt;|gt;|quot;|#x27;)", page.text)
    assert "b" not in page.tags
    assert r'assets.open("<b>&\"' in page.code["kotlin"] and r"'\${x}" in page.code["kotlin"]


def test_nulls(model, tmp_path):
    model |= {"command": None, "source": None}
    model["data"]["test"] = None
    model["file"] |= {"top1_of": "validation", "top1_before": None}
    for step in model["steps"]:
        step["macs"] = None
    for layer in model["layers"]:
        layer["macs_before"] = layer["macs_after"] = None
    page = _page(model, tmp_path)
    assert page.tables[0][-1] == ["MACs", "–", "–", "–"]
    assert "The MACs of this network are not known." in page.text
    assert "test: none" in page.text and "On test images" not in page.lead()


@pytest.mark.parametrize("count", [1, 100])
def test_every_layer_has_its_bars(count, model, tmp_path):
    model["layers"] = [_layer(i, 4 * (i + 1), 3 * (i + 1), macs=i + 1) for i in range(count)]
    page = _page(model, tmp_path)
    channels, layers, slow = page.tables[2:5]
    assert len(channels) == count and len(layers) == count + 1 and len(slow) == min(count, 10)
    widths = [float(width) for width in re.findall(r'class=after style="width:([\d.]+)%"', page.text)]
    assert widths[:count] == pytest.approx([75 * (i + 1) / count for i in range(count)], abs=0.01)
    assert slow[0][0] == f"conv{count - 1} Conv2D"


def test_points_lie_where_their_numbers_say(model, tmp_path):
    page = _page(model, tmp_path)
    size = re.findall("<svg.*?</svg>", page.text, re.S)[0]
    original, last = re.findall(r'<circle class=(\w+) cx="([\d.]+)" cy="([\d.]+)"', size)
    ticks = {float(x): float(at) for at, x in re.findall(r'<text x="([\d.]+)" y="242" text-anchor=middle>(\d+)<', size)}
    for (_, x, _), kilobytes in ((original, 141), (last, 17)):
        between = np.log(kilobytes / 10) / np.log(200 / 10)
        assert float(x) == pytest.approx(ticks[10] + between * (ticks[200] - ticks[10]), abs=0.1)
    assert float(original[2]) < float(last[2])
    assert "<path class=between" in size and ">1-prune (10.3)<" in size  # fallen out of the plot, and said so


def test_labels_of_close_points_do_not_overlap(model, tmp_path):
    steps = [dict(model["steps"][0], name=f"{i}-finetune", top1=0.99 + i / 1e4, bytes=141000 + i) for i in range(8)]
    svg = re.findall("<svg.*?</svg>", _page(model | {"steps": steps}, tmp_path).text, re.S)[0]
    labels = [(float(x), float(y)) for x, y in re.findall(r'<text class=name x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(labels) == 8
    for i, (x, y) in enumerate(labels):
        assert all(abs(x - other_x) >= 60 or abs(y - other_y) >= 12 for other_x, other_y in labels[:i])


@pytest.mark.parametrize("top1", [0.0, 0.5, 1.0])
def test_equal_steps_can_be_drawn(top1, model, tmp_path):
    steps = [dict(model["steps"][0], top1=top1) for _ in range(2)]
    assert "nan" not in _page(model | {"steps": steps}, tmp_path).text


def test_nothing_is_loaded(model, tmp_path):
    page = _page(model, tmp_path)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not {name for name, _ in page.attributes} & {"src", "srcset", "xlink:href", "onclick", "onload"}
    assert "url(" not in page.text and "@import" not in page.text
    assert "default-src 'none'" in page.text


def test_written_twice_the_same(model, tmp_path):
    first = _page(model, tmp_path).text
    assert _page(model, tmp_path).text == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "report.html"]


def test_recipe_can_be_read_again(model, tmp_path):
    import yaml

    assert yaml.safe_load(_page(model, tmp_path).code["yaml"]) == {"steps": model["recipe"]["steps"]}


def test_simple_storage_of_pixels_is_told(model, tmp_path):
    page = _page(model, tmp_path)
    assert "For this file that is simply pixel − 128." in page.text
    assert ["255", "1", "127"] in page.tables[6]
    model["input"] |= {"scaling": "-1-1", "scale": 2 / 255, "zero_point": 0}
    page = _page(model, tmp_path)
    assert "simply" not in page.text
    assert ["0", "−1", "−128"] in page.tables[6]


def test_code_is_for_this_file(model, tmp_path):
    model["input"] |= {"shape": [8, 6, 3], "dtype": "float32", "scale": 0.0, "zero_point": 0, "scaling": "-1-1"}
    model["output"] |= {"dtype": "float32", "scale": None, "zero_point": None, "softmax": False}
    kotlin = _page(model, tmp_path).code["kotlin"]
    assert "input.putFloat(value / 127.5f - 1f)" in kotlin and "buffer(576)" in kotlin and "SCALE" not in kotlin
    assert "createScaledBitmap(software, 6, 8, true)" in kotlin and "output.getFloat(4 * it)" in kotlin
    assert "Logits of 3 classes" in kotlin
    model["input"] |= {"shape": [40], "scaling": "none"}
    kotlin = _page(model, tmp_path).code["kotlin"]
    assert "Bitmap" not in kotlin and "values.size == 40" in kotlin and "input.putFloat(value)" in kotlin


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.update(version=2), "version must be 1. Received: version=2"),
        (lambda model: model.pop("version"), "lacks the key version"),
        (lambda model: model["file"].pop("bytes"), "lacks the key file.bytes"),
        (lambda model: model["steps"][1].pop("top1"), r"lacks the key steps\[1\].top1"),
        (lambda model: model.pop("layers"), "lacks the key layers"),
        (lambda model: model.update(steps=[]), "steps must hold at least the original"),
        (lambda model: model["file"].update(bytes=0), "file.bytes must hold one positive number. Received: 0"),
        (lambda model: model["steps"][0].update(top1="0.9"), r"steps\[0\].top1 must hold one number. Received: '0.9'"),
        (lambda model: model["file"].update(top1=float("nan")), "not JSON: NaN"),
        (lambda model: model["input"].update(scaling="0-2"), "input.scaling must be one of 0-1, -1-1"),
        (lambda model: model["input"].update(scale=None), "input.scale must be positive"),
        (lambda model: model.update(layers={}), "layers must be an array. Received: {}"),
    ],
)
def test_wrong_files_are_refused(change, words, model, tmp_path):
    change(model)
    with pytest.raises(ValueError, match=words) as error:
        _page(model, tmp_path)
    assert str(tmp_path / "model.json") in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_missing_and_corrupt_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no .*model[.]json[.] Compress a network into this folder first"):
        write_report(tmp_path)
    for data in (b"{", b"\xff", b""):
        (tmp_path / "model.json").write_bytes(data)
        with pytest.raises(ValueError, match=r"model[.]json is not JSON"):
            write_report(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model[.]json: the file must hold one object"):
        write_report(tmp_path)


def test_loads_neither_keras_nor_tensorflow():
    code = "import sys, tfcompress.compression.report; sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("scaling", "precision", "softmax"),
    [("0-1", "int8", True), ("-1-1", "int8", False), ("0-255", "int8", False), ("none", "float32", True)],
)
def test_python_block_runs(scaling, precision, softmax, model, tmp_path, rng, monkeypatch, capsys):
    import keras
    from keras import layers

    import tfcompress as tfc
    from tfcompress.tflite.evaluate import open_interpreter

    to_network = {"0-1": lambda x: x / 255, "-1-1": lambda x: x / 127.5 - 1}.get(scaling, lambda x: x)
    pixels = rng.integers(0, 256, (20, 6, 5, 1)).astype(np.float32)
    pixels[0].flat[:2] = 0, 255
    x = np.float32(to_network(pixels))
    calibration = x.copy()
    if scaling == "-1-1":
        calibration[1].flat[0] = 128 / 127  # for [-1, 1] itself the zero point lies halfway between two integers
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6, 5, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
    file = tfc.export_tflite(network, tmp_path / "model.tflite", precision, calibration, softmax=softmax)
    interpreter = open_interpreter(file.path)
    details = {"input": interpreter.get_input_details()[0], "output": interpreter.get_output_details()[0]}
    for name, tensor in details.items():
        scale, zero_point = tensor["quantization"]
        model[name] |= {"dtype": np.dtype(tensor["dtype"]).name, "scale": float(scale), "zero_point": int(zero_point)}
    model["input"] |= {"shape": [6, 5, 1], "scaling": scaling}
    model["output"]["softmax"] = softmax
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(_page(model, tmp_path).code["python"], names)
    assert capsys.readouterr().out.split()[0] in model["class_names"]
    ours = np.stack([names["classify"](image) for image in pixels])
    np.testing.assert_allclose(ours, tfc.predict_tflite(file.path, x), rtol=1e-6, atol=1e-6)
