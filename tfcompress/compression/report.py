"""The report of a compressed network: one page that needs nothing but a browser."""

import html
import json
import math
import pathlib

import yaml

from tfcompress.compression import snippets
from tfcompress.files import write_text

VERSION = 1
SLOWEST = 10
# A dict stands for an object, a list for an array of one kind, a tuple for a choice; a number with "+" is positive.
# What is marked "?" may be null, "??" also missing.
_SCHEMA = {
    "tfcompress": "text",
    "name": "text",
    "command": "text?",
    "recipe": {"name": "text", "steps": ["object"]},
    "source": {"?": True, "file": "text", "sha256": "text"},
    "data": {"source": "text", "train": "number", "validation": "number", "test": "number?"},
    "input": {
        "name": "text",
        "shape": ["number+"],
        "dtype": ("int8", "float32"),
        "scale": "number?",
        "zero_point": "number?",
        "scaling": tuple(snippets.SCALINGS),
    },
    "output": {
        "shape": ["number+"],
        "dtype": ("int8", "float32"),
        "scale": "number?",
        "zero_point": "number?",
        "softmax": "boolean",
    },
    "class_names": ["text"],
    "file": {
        "name": "text",
        "precision": "text",
        "bytes": "number+",
        "gzip_bytes": "number+",
        "top1": "number",
        "top1_before": "number??",
        "top1_of": ("test", "validation"),
        "latency_ms": "number+",
    },
    "steps": [
        {
            "name": "text",
            "title": "text",
            "precision": "text",
            "top1": "number",
            "params": "number+",
            "macs": "number+?",
            "bytes": "number+",
            "gzip_bytes": "number+",
            "latency_ms": "number+",
            "seconds": "number",
        }
    ],
    "layers": [
        {
            "name": "text",
            "kind": "text",
            "channels_before": "number",
            "channels_after": "number",
            "params_before": "number",
            "params_after": "number",
            "macs_before": "number?",
            "macs_after": "number?",
        }
    ],
    "environment": {"python": "text", "keras": "text", "tensorflow": "text??", "cpu": "text", "threads": "number"},
}
_TYPES = {"text": str, "number": (int, float), "boolean": bool, "object": dict}


def write_report(folder):
    """Writes `<folder>/report.html` from `<folder>/model.json`.

    The page holds its style and its plots, loads nothing and runs no script. The same `model.json` gives the same
    bytes.

    Args:
        folder: folder of a compressed network.

    Returns:
        Path of the page, which is replaced in one step or left as it was.

    Raises:
        ValueError: `model.json` is missing, is not JSON, has another version, or a key is missing or has a wrong value.
        OSError: a file cannot be read or written.
    """
    folder = pathlib.Path(folder)
    page = _page(_read(folder / "model.json"))
    return write_text(folder / "report.html", page)


def _read(path):
    try:
        model = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise ValueError(f"There is no {path}. Compress a network into this folder first.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Compress the network again.") from error
    _check(model, {"version": "number"}, "", path)
    if model["version"] != VERSION:
        raise ValueError(
            f"{path}: version must be {VERSION}. Received: version={model['version']}. Write the report with the "
            "tfcompress that wrote this file."
        )
    _check(model, _SCHEMA, "", path)
    if not model["steps"]:
        raise ValueError(f"{path}: steps must hold at least the original network. Received: steps=[]")
    for tensor in ("input", "output"):
        scale, zero_point = model[tensor]["scale"], model[tensor]["zero_point"]
        if model[tensor]["dtype"] == "int8" and (not scale or scale < 0 or zero_point is None):
            raise ValueError(
                f"{path}: {tensor}.scale must be positive and {tensor}.zero_point a number, since {tensor}.dtype is "
                f"int8. Received: scale={scale}, zero_point={zero_point}"
            )
    return model


def _refuse_constant(constant):
    raise ValueError(f"{constant} is no JSON number")


def _check(value, kind, key, path):
    if value is None and "?" in kind:
        return
    if isinstance(kind, dict):
        _check(value, "object", key, path)
        for name in [name for name in kind if name != "?"]:
            inner, inner_key = kind[name], f"{key}.{name}" if key else name
            if name not in value and "??" not in inner:
                raise ValueError(f"{path} lacks the key {inner_key}. Compress the network again.")
            _check(value.get(name), inner, inner_key, path)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise ValueError(f"{path}: {key} must be an array. Received: {value!r}")
        for i, item in enumerate(value):
            _check(item, kind[0], f"{key}[{i}]", path)
    elif isinstance(kind, tuple):
        if value not in kind:
            raise ValueError(f"{path}: {key} must be one of {', '.join(kind)}. Received: {value!r}")
    else:
        name = kind.rstrip("+?")
        right_type = isinstance(value, _TYPES[name]) and isinstance(value, bool) == (name == "boolean")
        if not right_type or ("+" in kind and value <= 0):
            expected = f"{'positive ' if '+' in kind else ''}{name}"
            raise ValueError(f"{path}: {key or 'the file'} must hold one {expected}. Received: {value!r}")


def _page(model):
    parts = (_result, _plots, _steps, _channels, _slow, _run, _scaling, _classes, _provenance)
    title = f"{html.escape(model['name'])}: compressed by tfcompress"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(part(model) for part in parts)}</main>
</body>
</html>
"""


def _result(model):
    first, last, file = model["steps"][0], model["steps"][-1], model["file"]
    top1_before, top1, images = _accuracy(model)
    pairs = {
        "File (bytes)": (first["bytes"], file["bytes"], _count, "smaller", "larger"),
        "After gzip -9 (bytes)": (first["gzip_bytes"], file["gzip_bytes"], _count, "smaller", "larger"),
        "Latency (ms)": (first["latency_ms"], file["latency_ms"], _milliseconds, "faster", "slower"),
        "Parameters": (first["params"], last["params"], _count, "fewer", "more"),
        "MACs": (first["macs"], last["macs"], _count, "fewer", "more"),
    }
    rows = [
        (label, text(before), text(after), _times(before, after, less, more).replace(" times", "×"))
        for label, (before, after, text, less, more) in pairs.items()
    ]
    accuracy = [(images, _percent(top1_before), _percent(top1), f"{_points(top1_before, top1)} points")]
    if images != file["top1_of"]:
        accuracy.append((file["top1_of"], _NONE, _percent(file["top1"]), ""))
    rows[2:2] = [(f"Top-1, {images} images (%)", *cells) for images, *cells in accuracy]
    note = (
        f"Measured on the {file['precision']} file {file['name']} itself. Latency is one image at a time on "
        f"{model['environment']['cpu']}; a phone differs, so measure it there as shown below."
    )
    return f"<header><h1>{html.escape(model['name'])}</h1>\n<p class=lead>{_sentence(model)}</p></header>\n" + _section(
        "Before and after", _table(("", "before", "after", "change"), rows), _paragraph(note)
    )


def _sentence(model):
    """The result in one sentence of HTML, and what the file reaches on test images where they were given."""
    first, file = model["steps"][0], model["file"]
    size = _times(first["bytes"], file["bytes"], "smaller", "larger", "as large as before")
    speed = _times(first["latency_ms"], file["latency_ms"], "faster", "slower", "as fast as before")
    top1_before, top1, images = _accuracy(model)
    points = _points(top1_before, top1)
    if points[0] in "+−":
        accuracy = f"{'rose' if points[0] == '+' else 'fell'} by {points[1:]} points"
    else:
        accuracy = "is unchanged"
    sentence = (
        f"{html.escape(model['name'])} is now {_strong(size, 'larger')} "
        f"({_count(first['bytes'])} → {_count(file['bytes'])} bytes) and {_strong(speed, 'slower')} "
        f"({_milliseconds(first['latency_ms'])} → {_milliseconds(file['latency_ms'])} ms); its top-1 accuracy "
        f"{_strong(accuracy, 'fell')} ({_percent(top1_before)}% → {_percent(top1)}% on {images} images)."
    )
    if images != file["top1_of"]:
        sentence += f" On {file['top1_of']} images the file reaches {_percent(file['top1'])}%."
    return sentence


def _accuracy(model):
    """Top-1 before, top-1 after, and the images of both: the file's, or else the steps' validation images."""
    first, last, file = model["steps"][0], model["steps"][-1], model["file"]
    if file.get("top1_before") is None:
        return first["top1"], last["top1"], "validation"
    return file["top1_before"], file["top1"], file["top1_of"]


def _times(before, after, less, more, same="the same"):
    """`8.3 times smaller`, or in percent where the factor is below 1.1."""
    if before is None or after is None:
        return _NONE
    factor, word = (before / after, less) if after <= before else (after / before, more)
    if factor >= 1.1:
        return f"{factor:.1f} times {word}" if factor < 10 else f"{factor:,.0f} times {word}"
    percent = f"{100 * abs(before - after) / before:.1f}"
    return same if percent == "0.0" else f"{percent}% {word}"


def _points(before, after):
    """Change of an accuracy in points, with its sign, or `0.00`."""
    # From the rounded percentages, so that it agrees with what is printed beside it.
    change = round(round(100 * after, 2) - round(100 * before, 2), 2)
    return f"{change:+.2f}".replace("-", "−") if change else "0.00"


def _strong(text, worse):
    return f"<strong{' class=worse' if worse in text else ''}>{text}</strong>"


def _plots(model):
    steps = model["steps"]
    big = max(step["bytes"] for step in steps) >= 1e6
    sizes = [step["bytes"] / (1e6 if big else 1e3) for step in steps]
    plots = _scatter(steps, sizes, "file size", "MB" if big else "kB")
    plots += _scatter(steps, [step["latency_ms"] for step in steps], "latency", "ms")
    note = (
        "Every step as a file of its own: the ring is the original, the full dot the final file. Top-1 is on "
        "validation images; up and to the left is better. A triangle lies further down, where its label says."
    )
    return _section("Accuracy against size and latency", f"<div class=plots>{plots}</div>\n", _paragraph(note))


WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 44, 342, 26, 226
LETTER, LINE = 6.4, 13


def _scatter(steps, sizes, quantity, unit):
    """SVG of the steps: top-1 in % over their sizes, on a log axis."""
    heights = [100 * step["top1"] for step in steps]
    # A network just pruned may fall to chance, and on such an axis all others would look alike.
    floor = min(heights[0], heights[-1]) - max(3, 2 * abs(heights[0] - heights[-1]))
    fallen = [height < floor for height in heights]
    x_ticks = _log_ticks(sizes)
    y_ticks, low, high = _linear_ticks([max(height, floor) for height in heights])

    def across(x):
        return LEFT + (RIGHT - LEFT) * math.log(x / x_ticks[0]) / math.log(x_ticks[-1] / x_ticks[0])

    def up(y):
        return BOTTOM - (BOTTOM - TOP) * (y - low) / (high - low)

    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    shown = x_ticks if len(x_ticks) <= 7 else [x for x in x_ticks if f"{x:e}"[0] == "1"]
    points = [(across(x), up(max(y, floor))) for x, y in zip(sizes, heights)]
    names = [_short(step["name"]) for step in steps]
    labels = [f"{name} ({y:.1f})" if down else name for name, y, down in zip(names, heights, fallen)]
    parts = [
        *(f'<path class=grid d="M{across(x):.1f} {TOP}V{BOTTOM}"/>' for x in x_ticks),
        *(f'<path class=grid d="M{LEFT} {up(y):.1f}H{RIGHT}"/>' for y in y_ticks),
        *(f'<text x="{across(x):.1f}" y="{BOTTOM + 16}" text-anchor=middle>{x:,g}</text>' for x in shown),
        *(f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor=end>{y:.{digits}f}</text>' for y in y_ticks),
        '<text x="0" y="12">top-1 (%)</text>',
        f'<text x="{RIGHT}" y="{HEIGHT - 8}" text-anchor=end>{quantity} ({unit})</text>',
        f'<polyline class=way points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>',
    ]
    for i, (x, y) in enumerate(points):
        role = "last" if i == len(steps) - 1 else "first" if i == 0 else "between"
        shape = f'circle class={role} cx="{x:.1f}" cy="{y:.1f}" r="5"'
        if fallen[i]:
            shape = f'path class={role} d="M{x - 6:.1f} {y - 5:.1f}h12l-6 11z"'
        title = html.escape(f"{steps[i]['name']}: {heights[i]:.2f}%, {sizes[i]:,.4g} {unit}")
        parts.append(f"<{shape}><title>{title}</title></{shape.split()[0]}>")
    parts += _point_labels(labels, points)
    name = f"Top-1 accuracy against {quantity}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{name}">\n' + "\n".join(parts) + "\n</svg>\n"


def _point_labels(names, points):
    """SVG texts beside their points: each at the nearest place where it covers no point and no other label."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    parts = []
    for name, (x, y) in zip(names, points):
        width = LETTER * len(name)
        places = []
        for reach in range(8, 90, 8):
            for angle in range(0, 360, 30):
                across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                # The nearest point of the box touches the circle of this reach.
                left = x + reach * across + (across - 1) / 2 * width
                top = y - reach * up - (up + 1) / 2 * LINE
                places.append((left, top, left + width, top + LINE))
        inside = [box for box in places if box[0] > LEFT and box[2] <= WIDTH and box[1] >= TOP - 8 and box[3] <= BOTTOM]
        box = min(inside or places, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(box)
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist(near, (x, y)) > 10:
            parts.append(f'<path class=leader d="M{x:.1f} {y:.1f}L{near[0]:.1f} {near[1]:.1f}"/>')
        parts.append(
            f'<text class=name x="{(box[0] + box[2]) / 2:.1f}" y="{box[3] - 3:.1f}" text-anchor=middle>'
            f"{html.escape(name)}</text>"
        )
    return parts


def _overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _short(name):
    return name if len(name) <= 20 else f"{name[:19]}…"


def _log_ticks(values):
    """1, 2, 5, 10, ... from below the least to above the greatest value."""
    low, high = min(values), max(values)
    exponents = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
    ticks = [mantissa * 10.0**exponent for exponent in exponents for mantissa in (1, 2, 5)]
    first = max(tick for tick in ticks if tick < 0.99 * low)
    last = min(tick for tick in ticks if tick > 1.01 * high)
    return [tick for tick in ticks if first <= tick <= last]


def _linear_ticks(values):
    """About four round values in a range around the values, and the range."""
    margin = max(0.15 * (max(values) - min(values)), 0.05)
    low, high = min(values) - margin, max(values) + margin
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(mantissa * power for mantissa in (1, 2, 5, 10) if (high - low) / (mantissa * power) <= 5)
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [tick for tick in ticks if -1e-9 <= tick <= 100 + 1e-9], low, high


def _steps(model):
    header = (
        "step", "", "precision", "top-1 (%)", "parameters", "MACs", "bytes", "gzip -9", "latency (ms)", "time",
    )  # fmt: skip
    rows = [
        (
            step["name"],
            step["title"],
            step["precision"],
            _percent(step["top1"]),
            _count(step["params"]),
            _count(step["macs"]),
            _count(step["bytes"]),
            _count(step["gzip_bytes"]),
            _milliseconds(step["latency_ms"]),
            _duration(step["seconds"]),
        )
        for step in model["steps"]
    ]
    return _section("All steps", _table(header, rows, texts=3), _paragraph("Top-1 is on validation images."))


def _channels(model):
    layers = model["layers"]
    widest = max((max(layer["channels_before"], layer["channels_after"]) for layer in layers), default=0) or 1
    bars = _bars(
        (
            layer["name"],
            layer["kind"],
            (layer["channels_before"] / widest, layer["channels_after"] / widest),
            _arrow(layer["channels_before"], layer["channels_after"]),
        )
        for layer in layers
    )
    header = ("layer", "kind", "channels", "parameters", "MACs")
    rows = [
        (
            layer["name"],
            layer["kind"],
            *(_arrow(layer[f"{what}_before"], layer[f"{what}_after"]) for what in ("channels", "params", "macs")),
        )
        for layer in layers
    ]
    note = f"<p class=note><i class=before></i> before <i class=after></i> after, {len(layers)} layers</p>\n"
    table = f"<details><summary>Parameters and MACs of every layer</summary>\n{_table(header, rows, texts=2)}</details>"
    return _section("Channels per layer", note, bars, table)


def _slow(model):
    known = [layer for layer in model["layers"] if layer["macs_after"]]
    total = sum(layer["macs_after"] for layer in known)
    slowest = sorted(known, key=lambda layer: -layer["macs_after"])[:SLOWEST]
    layers = _bars(
        (
            layer["name"],
            layer["kind"],
            (layer["macs_after"] / slowest[0]["macs_after"],),
            f"{100 * layer['macs_after'] / total:.1f}%",
        )
        for layer in slowest
    )
    if not known:
        layers = _paragraph("The MACs of this network are not known.")
    longest = max(step["seconds"] for step in model["steps"]) or 1
    steps = _bars(
        (step["name"], "", (step["seconds"] / longest,), _duration(step["seconds"])) for step in model["steps"]
    )
    seconds = sum(step["seconds"] for step in model["steps"])
    return _section(
        "What is slow",
        "<h3>In the file: share of the MACs that are left</h3>\n",
        layers,
        f"<h3>In the compression: {_duration(seconds)}</h3>\n",
        steps,
    )


def _run(model):
    folder_note = f"Each block is for {model['file']['name']}: its shape, types and scaling."
    return _section(
        "Run the file",
        _paragraph(folder_note),
        "<h3>Android, in Kotlin</h3>\n",
        _code("kotlin", snippets.kotlin(model)),
        "<h3>Latency on a phone</h3>\n",
        _paragraph("With USB debugging on. The last command also prints the time of every operation."),
        _code("shell", snippets.adb(model)),
        "<h3>Python</h3>\n",
        _paragraph("Run it in the folder of this report."),
        _code("python", snippets.python(model)),
    )


def _scaling(model):
    source, target = model["input"], model["output"]
    shape = " × ".join(map(str, source["shape"]))
    python = snippets.SCALINGS[source["scaling"]][0]
    text = f"The input {source['name']} has the shape 1 × {shape} and the type {source['dtype']}. "
    if source["scaling"] == "none":
        text += "The file takes the values that the original network takes; tfcompress scaled nothing. "
    else:
        text += f"The network takes {python.replace('pixels', 'pixel').replace('-', '−')}, pixels being 0 to 255. "
    if source["dtype"] == "int8":
        text += (
            f"A value x of the network is stored as round(x / {source['scale']}) {_signed(source['zero_point'])}, cut "
            "to −128 ... 127. "
        )
        if source["scaling"] != "none" and all(_stored(source, p) == p - 128 for p in range(256)):
            text += "For this file that is simply pixel − 128. "
    output = f"The output has the shape 1 × {' × '.join(map(str, target['shape']))} and the type {target['dtype']}. "
    if target["dtype"] == "int8":
        output += f"A stored value q stands for (q {_signed(-target['zero_point'])}) × {target['scale']}. "
    output += (
        "These are probabilities: the file ends with a softmax."
        if target["softmax"]
        else "These are logits: the largest belongs to the answer, and a softmax makes them probabilities."
    )
    table = ""
    if source["scaling"] != "none":
        header = ("pixel", "network", *(["file"] if source["dtype"] == "int8" else []))
        rows = [
            (str(p), f"{_scaled(source, p):.4g}", *([str(_stored(source, p))] if source["dtype"] == "int8" else []))
            for p in (0, 1, 128, 255)
        ]
        table = _table(header, [[cell.replace("-", "−") for cell in row] for row in rows])
    return _section("Input and output", _paragraph(text.strip()), table, _paragraph(output))


def _scaled(source, pixel):
    return {"0-1": pixel / 255, "-1-1": pixel / 127.5 - 1, "0-255": float(pixel)}[source["scaling"]]


def _stored(source, pixel):
    return min(max(round(_scaled(source, pixel) / source["scale"]) + int(source["zero_point"]), -128), 127)


def _signed(number):
    return f"{'−' if number < 0 else '+'} {abs(int(number))}"


def _classes(model):
    names = "".join(f"<li>{html.escape(name)}</li>\n" for name in model["class_names"])
    title = f"{len(model['class_names'])} classes"
    note = "The outputs are in this order, counted from 0; labels.txt holds it, one name a line."
    return _section(title, _paragraph(note), f'<div class="scroll tall" tabindex=0><ol start=0>\n{names}</ol></div>\n')


def _provenance(model):
    source, data, environment = model["source"] or {}, model["data"], model["environment"]
    versions = {"tfcompress": model["tfcompress"], **environment}
    test = "none" if data["test"] is None else _count(data["test"])
    rows = (
        ("Source", source.get("file", _NONE)),
        ("sha256", source.get("sha256", _NONE)),
        ("Data", data["source"]),
        ("Images", f"{_count(data['train'])} training, {_count(data['validation'])} validation, test: {test}"),
        ("Command", model["command"] or _NONE),
        ("Versions", ", ".join(f"{name} {versions[name]}" for name in versions if name not in ("cpu", "threads"))),
        ("Machine", f"{environment['cpu']}, {_count(environment['threads'])} threads"),
    )
    items = "".join(f"<dt>{label}</dt><dd>{html.escape(text)}</dd>\n" for label, text in rows)
    return _section(
        "Where it comes from",
        f"<dl>\n{items}</dl>\n<h3>Recipe {html.escape(model['recipe']['name'])}</h3>\n",
        _code("yaml", yaml.safe_dump({"steps": model["recipe"]["steps"]}, sort_keys=False, allow_unicode=True)),
    )


_NONE = "–"


def _section(title, *parts):
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{''.join(parts)}</section>\n"


def _paragraph(text):
    return f"<p>{html.escape(text)}</p>\n"


def _code(language, text):
    return f"<pre tabindex=0><code class={language}>{html.escape(text)}</code></pre>\n"


def _table(header, rows, texts=1):
    """HTML of a table whose first `texts` columns are text and whose other columns are numbers."""

    def row(cells, tag):
        classes = [" class=text" if i < texts else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(classes, cells))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>\n" for cells in rows)
    return (
        f"<div class=scroll tabindex=0><table>\n<thead><tr>{row(header, 'th')}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def _bars(rows):
    """HTML of horizontal bars. Each row: name, small print, one or two (before, after) fractions in [0, 1], text."""
    lines = []
    for name, small, fractions, text in rows:
        kinds = ("before", "after")[-len(fractions) :]
        bars = "".join(f'<i class={kind} style="width:{100 * f:.2f}%"></i>' for kind, f in zip(kinds, fractions))
        small = f" <small>{html.escape(small)}</small>" if small else ""
        lines.append(
            f"<tr><th>{html.escape(name)}{small}</th><td><div class=bar>{bars}</div></td>"
            f"<td>{html.escape(text)}</td></tr>\n"
        )
    return f'<div class="scroll tall" tabindex=0><table class=bars><tbody>\n{"".join(lines)}</tbody></table></div>\n'


def _arrow(before, after):
    return _count(before) if before == after else f"{_count(before)} → {_count(after)}"


def _count(number):
    return _NONE if number is None else f"{number:,.0f}"


def _percent(fraction):
    return f"{100 * fraction:.2f}"


def _milliseconds(value):
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _duration(seconds):
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2329; --quiet: #5a6570; --line: #d9dfe5; --box: #f5f7f9;
  --before: #c3ccd5; --after: #1467b8; --worse: #b23a12; }
@media (prefers-color-scheme: dark) { :root { --back: #14181c; --text: #e4e8ec; --quiet: #9ba7b3; --line: #333b43;
  --box: #1d2329; --before: #4d5863; --after: #64aef5; --worse: #ff9b73; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
section p, small, dt { color: var(--quiet); }
.lead { font-size: 1.25rem; }
strong { color: var(--after); }
strong.worse { color: var(--worse); }
.scroll { overflow-x: auto; }
.tall { max-height: 32rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
.bars { width: 100%; }
.bars th { text-align: left; font-weight: 400; white-space: normal; overflow-wrap: anywhere; width: 30%;
  min-width: 6rem; line-height: 1.25; }
.bars td:nth-child(2) { width: 70%; padding: 0; }
.bar { position: relative; height: 1rem; min-width: 4rem; }
.bar i { position: absolute; left: 0; top: 0; bottom: 0; }
.bar .after { top: .2rem; bottom: .2rem; }
.bar .after:only-child { top: 0; bottom: 0; }
.before { background: var(--before); }
.after { background: var(--after); }
.note i { display: inline-block; width: .8em; height: .8em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
svg { width: 100%; max-width: 30rem; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); }
svg .name { fill: var(--text); paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
.grid { stroke: var(--line); }
.way { fill: none; stroke: var(--before); stroke-width: 1.5; stroke-dasharray: 3 3; }
.leader { stroke: var(--quiet); stroke-width: .75; }
.first, .between, .last { fill: var(--back); stroke: var(--after); stroke-width: 2; }
.between { fill: var(--before); }
.last { fill: var(--after); }
pre { margin: .5rem 0; padding: .75rem 1rem; overflow-x: auto; background: var(--box); border: 1px solid var(--line);
  border-radius: .4rem; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
code { font: inherit; }
details { margin-top: 1rem; }
summary { cursor: pointer; }
ol { columns: 11rem; margin: 0; padding: 0; }
li { margin-left: 3rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  table { font-size: .82rem; }
  th, td { padding: .3rem; }
  td.text:first-child { white-space: normal; min-width: 5rem; }
  header + section td:last-child { white-space: normal; min-width: 4rem; }
  .bars tbody { display: block; }
  .bars tr { display: grid; grid-template-columns: 1fr auto; border-bottom: 1px solid var(--line); }
  .bars th { grid-column: 1 / -1; width: auto; padding-bottom: 0; }
  .bars th, .bars td { border: 0; }
  .bars td:nth-child(2) { width: auto; align-self: center; }
}
"""
