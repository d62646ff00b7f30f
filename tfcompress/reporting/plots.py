"""Plots: accuracy against bytes and sparsity, weights before and after."""

import json
import os
import pathlib

from tfcompress.reporting.published import published_points
from tfcompress.reporting.records import HISTOGRAMS, read_records
from tfcompress.reporting.summary import BASELINE, summarize

SIZES = {"tflite_bytes": ("o", "raw"), "gzip_bytes": ("s", "gzip -9")}


def write_plots(results):
    """Draws `<results>/<experiment>/<profile>-*.png` of every experiment of profile quick or full.

    `accuracy-bytes`: both sizes of every variant, log scale, with the published points. `sparsity-accuracy`: where
    variants differ in sparsity. `weights`: where weight histograms lie beside the record of the first seed.

    Args:
        results: folder of the records.

    Returns:
        List of the paths written.

    Raises:
        ValueError: there are no records of profile quick or full, or one is corrupt.
    """
    results = pathlib.Path(results)
    summaries = summarize([record for record in read_records(results) if record.profile != "smoke"])
    if not summaries:
        raise ValueError(f"There are no records of profile quick or full under {results}.")
    paths = []
    for summary in summaries:
        folder = results / summary.experiment
        paths.append(_save(_accuracy_against_bytes(summary), folder / f"{summary.profile}-accuracy-bytes.png"))
        if len({round(spreads["sparsity"].mean, 3) for spreads in summary.variants.values()}) > 2:
            paths.append(
                _save(_sparsity_against_accuracy(summary), folder / f"{summary.profile}-sparsity-accuracy.png")
            )
        histograms = folder / f"{summary.profile}-seed{summary.seeds[0]}" / HISTOGRAMS
        if histograms.exists():
            figure = _weights(summary, json.loads(histograms.read_text()))
            paths.append(_save(figure, folder / f"{summary.profile}-weights.png"))
    return paths


def _accuracy_against_bytes(summary):
    figure, axes = _figure(summary, "bytes", "top-1 of the file (%)")
    for metric, (marker, label) in SIZES.items():
        _points(axes, summary, metric, label, marker)
    _name_points(axes, summary, "gzip_bytes")
    for name, size, accuracy in _published_sizes(summary):
        axes.plot(size, accuracy, "*", markersize=12, label=name)
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    return figure


def _sparsity_against_accuracy(summary):
    figure, axes = _figure(summary, "sparsity (%)", "top-1 of the file (%)")
    _points(axes, summary, "sparsity", "ours", "o")
    _name_points(axes, summary, "sparsity")
    return figure


def _weights(summary, histograms):
    import matplotlib.figure

    figure = matplotlib.figure.Figure((3.2 * len(histograms), 3), layout="constrained")
    figure.suptitle(f"{summary.experiment}, {summary.profile}: weights before and after")
    for column, (layer, histogram) in enumerate(histograms.items(), 1):
        axes = figure.add_subplot(1, len(histograms), column)
        for name in ("before", "after"):
            axes.stairs(histogram[name], histogram["edges"], label=name, fill=name == "before", alpha=0.6)
        axes.set_yscale("log")  # the zeros outnumber every other bin by orders of magnitude
        axes.set_title(layer, fontsize=9)
        axes.legend(fontsize=8)
    return figure


def _figure(summary, x_label, y_label):
    import matplotlib.figure

    figure = matplotlib.figure.Figure((7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(
        title=f"{summary.experiment} ({summary.dataset}), profile {summary.profile}", xlabel=x_label, ylabel=y_label
    )
    axes.grid(alpha=0.3)
    return figure, axes


def _points(axes, summary, metric, label, marker):
    spreads = summary.variants.values()
    axes.errorbar(
        [spread[metric].mean for spread in spreads],
        [spread["top1_tflite"].mean for spread in spreads],
        [spread["top1_tflite"].deviation or 0 for spread in spreads],
        fmt=marker,
        label=label,
    )


def _name_points(axes, summary, metric):
    for variant, spreads in summary.variants.items():
        position = (spreads[metric].mean, spreads["top1_tflite"].mean)
        # Tilted, neighbours at the same height do not cover each other.
        axes.annotate(variant, position, (4, -4), textcoords="offset points", fontsize=7, rotation=-35, va="top")


def _published_sizes(summary):
    """(label, bytes, top-1 in %) of published points; a drop is drawn from our float accuracy."""
    baseline = summary.variants.get(BASELINE, {}).get("top1_tflite")
    for point in published_points():
        if (point.experiment, point.dataset) != (summary.experiment, summary.dataset):
            continue
        values = {figure.metric: figure.published for figure in point.figures if figure.published is not None}
        size = values.get("gzip_bytes", values.get("tflite_bytes"))
        accuracy = values.get("top1_tflite")
        if size is None:
            continue
        if accuracy is None and baseline is not None and "drop" in values:
            yield f"{point.name} (published drop)", size, baseline.mean - values["drop"]
        elif accuracy is not None:
            yield f"{point.name} (published)", size, accuracy


def _save(figure, path):
    part = path.with_name(path.name + ".part")
    # Without the Software entry a newer matplotlib does not change every file.
    figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
    os.replace(part, path)
    return path
