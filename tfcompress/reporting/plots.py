"""Plots: accuracy against bytes, MACs and sparsity; weights, filters and channels before and after."""

import json
import pathlib

import numpy as np

from tfcompress.files import replacing
from tfcompress.reporting.published import published_points
from tfcompress.reporting.records import FILTER_NORMS, HISTOGRAMS, SIMILARITIES, read_records
from tfcompress.reporting.summary import BASELINE, METRICS, summarize

SIZES = {"tflite_bytes": ("o", "raw"), "gzip_bytes": ("s", "gzip -9")}
ROUTES = {"unpruned": "D", "sparse": "o", "narrower": "s"}
PUBLISHED = "*PX^vp"
FAR = 10  # points below the median accuracy


def write_plots(results):
    """Draws `<results>/<experiment>/<profile>-*.png` of every experiment of profile quick or full.

    `accuracy-bytes`: both sizes of every variant, log scale, with the published points. `sparsity-accuracy` and
    `macs-accuracy`: where variants differ by percents in sparsity, or in MACs. `params-accuracy`: where a published
    point cuts parameters. `routes`: raw bytes and latency, where some variants are sparse and others narrower. None of
    these without accuracies. `weights`, `norms`, `similarities` and `channels`: where weight histograms, norms and
    similarities of filters, and pruning plans lie beside the record of the first seed. `sensitivity`: where it was
    measured. Of these experiments and profiles, plots that the records no longer give are removed.

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
        for name, figure in _accuracies(summary):
            paths.append(_save(figure, folder / f"{summary.profile}-{name}.png"))
        first_seed = folder / f"{summary.profile}-seed{summary.seeds[0]}"
        for name, draw in ((HISTOGRAMS, _weights), (FILTER_NORMS, _norms), (SIMILARITIES, _similarities)):
            if (first_seed / name).exists():
                figure = draw(summary, json.loads((first_seed / name).read_text()))
                if figure:
                    paths.append(_save(figure, folder / f"{summary.profile}-{draw.__name__[1:]}.png"))
        plans = {path.name.removesuffix(".plan.json"): path for path in sorted(first_seed.glob("*.plan.json"))}
        recorded = {name.removesuffix("-int8-qat") for name in summary.variants}
        plans = {name: path for name, path in plans.items() if name in recorded}
        if plans:
            paths.append(_save(_channels(summary, plans), folder / f"{summary.profile}-channels.png"))
        for path in sorted(folder.glob(f"sensitivity-{summary.profile}-*.json"))[:1]:
            figure = _sensitivity(summary, json.loads(path.read_text()))
            paths.append(_save(figure, folder / f"{summary.profile}-sensitivity.png"))
        for stale in {*folder.glob(f"{summary.profile}-*.png")}.difference(paths):
            stale.unlink()
    return paths


def _accuracies(summary):
    """(name, figure) of every plot of accuracies that has something to show."""
    variants = summary.variants.values()
    if not all("top1_tflite" in spreads for spreads in variants):
        return
    yield "accuracy-bytes", _accuracy_against_bytes(summary)
    if len({round(spreads["sparsity"].mean) for spreads in variants}) > 2:
        yield "sparsity-accuracy", _sparsity_against_accuracy(summary)
    if set(ROUTES) <= set(map(_route, variants)) and all("latency_ms" in spreads for spreads in variants):
        yield "routes", _routes(summary)
    if BASELINE not in summary.variants:
        return
    if len({spreads["macs"].mean for spreads in variants}) > 2:
        yield "macs-accuracy", _accuracy_against_cut(summary, "macs_cut")
    if any(figure.metric == "params_cut" for point in _published(summary) for figure in point.figures):
        yield "params-accuracy", _accuracy_against_cut(summary, "params_cut")


def _accuracy_against_bytes(summary):
    figure, axes = _figure(summary, "size", "top-1 of the file (%)")
    for metric, (marker, label) in SIZES.items():
        _points(axes, summary, metric, lambda variant, marker=marker: marker)
        axes.plot([], [], marker, color="grey", label=label)
    _log_scale(axes, "B")
    _legend(axes, _published_sizes(summary))
    return figure


def _sparsity_against_accuracy(summary):
    figure, axes = _figure(summary, "sparsity (%)", "top-1 of the file (%)")
    _points(axes, summary, "sparsity", lambda variant: "o")
    _legend(axes)
    return figure


def _accuracy_against_cut(summary, metric):
    """Ours at the real cut and, hollow, at the cut as papers count it; published points as they count it."""
    figure, axes = _figure(summary, f"{METRICS[metric].label} (%)", "top-1 of the file (%)")
    cut = {name: spreads for name, spreads in summary.variants.items() if metric in spreads and spreads[metric].mean}
    _points(axes, summary, metric, lambda variant: "o" if variant in cut else None)
    papers = f"{metric}_papers"
    counted = [name for name, spreads in cut.items() if papers in spreads]
    if counted:
        _points(axes, summary, papers, lambda variant: "o" if variant in counted else None, fillstyle="none")
        axes.plot([], [], "o", color="grey", fillstyle="none", label="as papers count")
    baseline = summary.variants[BASELINE]["top1_tflite"].mean
    axes.axhline(baseline, color="grey", linewidth=0.8, linestyle=":", label="unpruned float")
    stars = []
    for point in _published(summary):
        values = {figure.metric: figure.published for figure in point.figures if figure.published is not None}
        place = values.get(papers, values.get(metric))
        if place and "drop" in values:
            stars.append((f"{point.name} (published drop)", place, baseline - values["drop"]))
    _legend(axes, stars)
    return figure


def _routes(summary):
    """Sparse and narrower networks side by side: both get smaller, and which get faster?"""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((12, 4.8), layout="constrained")
    panels = dict(zip(("tflite_bytes", "latency_ms"), figure.subplots(1, 2, sharey=True)))
    for (metric, axes), (label, unit) in zip(panels.items(), (("raw", "B"), ("latency", "ms"))):
        _describe(axes, summary, f"{label} ({unit})", "top-1 of the file (%)")
        _points(axes, summary, metric, lambda variant: ROUTES[_route(summary.variants[variant])])
        _log_scale(axes, unit)
    for route, marker in ROUTES.items():
        axes.plot([], [], marker, color="grey", label=route)
    published = list(_published_sizes(summary))
    _star(panels["tflite_bytes"], published)
    _legend(axes, [(name, [], []) for name, _, _ in published])
    return figure


def _route(spreads):
    if "params_cut" in spreads and spreads["params_cut"].mean >= 5:
        return "narrower"
    return "sparse" if spreads["sparsity"].mean >= 5 else "unpruned"


def _norms(summary, norms):
    """A row for each pruned network: how the norms of what it kept spread, before the norms of all filters.

    None where no pruned network has norms.
    """
    import matplotlib.figure

    names = list(dict.fromkeys(name for variants in norms.values() for name in variants if name != "before"))
    if not names:
        return None
    figure = matplotlib.figure.Figure((4 * len(norms), 1 + 1.4 * len(names)), layout="constrained")
    figure.suptitle(f"{summary.experiment}, {summary.profile}: distribution of filter norms before and after")
    columns = figure.subplots(len(names), len(norms), squeeze=False, sharex="col").T
    for panels, (title, variants) in zip(columns, norms.items()):
        edges = np.linspace(min(variants["before"]), max(variants["before"]), 16)
        for axes, name in zip(panels, names):
            for values, label, fill in ((variants["before"], "all", True), (variants.get(name), "kept", False)):
                if values:
                    density, _ = np.histogram(values, edges, density=True)
                    axes.stairs(density, edges, label=label, fill=fill, alpha=0.4 if fill else 1)
            axes.set_title(name, fontsize=8)
        panels[0].set_title(f"{title}\n{names[0]}", fontsize=8)
        panels[-1].set_xlabel("norm / mean of the layer")
    panels[0].legend(fontsize=7)
    return figure


def _similarities(summary, layers):
    """Cosines between the filters of layers: all of them, those that stay first, and those that stay, fine-tuned.

    None where there are no layers.
    """
    import matplotlib.figure

    if not layers:
        return None
    figure = matplotlib.figure.Figure((3.4 * len(layers) + 0.8, 6.6), layout="constrained")
    figure.suptitle(f"{summary.experiment}, {summary.profile}: cosine similarity of filters before and after")
    panels = figure.subplots(2, len(layers), squeeze=False)
    for column, (title, layer) in zip(panels.T, layers.items()):
        for axes, name, filters in zip(column, ("before", "after"), (layer["filters"], layer["kept"])):
            picture = axes.imshow(layer[name], cmap="RdBu_r", vmin=-100, vmax=100)
            shown = f"{len(layer[name])} of {filters}" if len(layer[name]) < filters else str(filters)
            axes.set_title(f"{title}\n{name}: {shown} filters", fontsize=8)
            axes.set(xticks=[], yticks=[])
        boundary = layer["kept_shown"] - 0.5
        column[0].axhline(boundary, color="black", linewidth=0.8)
        column[0].axvline(boundary, color="black", linewidth=0.8)
    figure.colorbar(picture, ax=panels, label="cosine (%)", shrink=0.6)
    return figure


def _channels(summary, plans):
    """Kept channels of every layer; variants with the same widths share a line."""
    import matplotlib.figure

    lines = {}
    for variant, path in plans.items():
        plan = json.loads(path.read_text())
        lines.setdefault(tuple(len(kept) for kept in plan["kept"].values()), ([], plan))[0].append(variant)
    figure = matplotlib.figure.Figure((10, 4), layout="constrained")
    axes = figure.add_subplot()
    widths = next(iter(lines.values()))[1]["widths"]
    axes.stairs(list(widths.values()), fill=True, alpha=0.25, color="grey", label="before")
    for kept, (variants, _) in lines.items():
        axes.stairs(kept, label=variants[0] + (f" and {len(variants) - 1} with the same" if variants[1:] else ""))
    axes.set(title=f"{summary.experiment}, {summary.profile}: channels per layer", ylabel="channels")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    step = -(-len(widths) // 40)
    axes.set_xticks([i + 0.5 for i in range(0, len(widths), step)], list(widths)[::step], rotation=90, fontsize=6)
    axes.legend(fontsize=6)
    return figure


def _sensitivity(summary, measured):
    """What pruning one layer alone does, front to back, a line for each ratio."""
    import matplotlib.figure

    curves = measured["divergence"]
    figure = matplotlib.figure.Figure((10, 4), layout="constrained")
    axes = figure.add_subplot()
    for ratio in next(iter(curves.values()), ()):
        values = [max(curve[ratio], 1e-5) for curve in curves.values()]
        axes.plot(values, marker="o", markersize=3, label=f"{float(ratio):.0%} of its channels removed")
    axes.set(
        title=f"{summary.experiment}, {summary.profile}: one layer pruned, before fine-tuning",
        ylabel="divergence (nats)",
        yscale="log",
    )
    step = -(-len(curves) // 40)
    axes.set_xticks(range(0, len(curves), step), list(curves)[::step], rotation=90, fontsize=6)
    axes.legend(fontsize=6)
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
        axes.set(xlabel="weight", ylabel="weights per bin")
        axes.legend(fontsize=8)
    return figure


def _figure(summary, x_label, y_label):
    import matplotlib.figure

    figure = matplotlib.figure.Figure((9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _describe(axes, summary, x_label, y_label)
    return figure, axes


def _describe(axes, summary, x_label, y_label):
    axes.set(
        title=f"{summary.experiment} ({summary.dataset}), profile {summary.profile}", xlabel=x_label, ylabel=y_label
    )
    axes.grid(alpha=0.3)


def _log_scale(axes, unit):
    """A logarithmic x axis in B or ms with its numbers written out."""
    import matplotlib.ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(unit) if unit == "B" else "{x:g}")
    axes.xaxis.set_minor_formatter("")


def _points(axes, summary, metric, marker, **style):
    """The variants in the color of their row; `marker` gives a variant's marker, or None to leave it out.

    An accuracy far below the others would leave no room to tell these apart: a triangle under them names it,
    each in a row of its own.
    """
    import matplotlib

    accuracies = np.array([spreads["top1_tflite"].mean for spreads in summary.variants.values()])
    near = accuracies[accuracies >= np.median(accuracies) - FAR]
    row = 0.12 * max(np.ptp(near), 0.1)
    colors = matplotlib.colormaps["tab10" if len(summary.variants) <= 10 else "tab20"].colors
    labelled = axes.get_legend_handles_labels()[1]
    for i, (variant, spreads) in enumerate(summary.variants.items()):
        if marker(variant) is None:
            continue
        accuracy = spreads["top1_tflite"]
        label = None if variant in labelled else variant
        style_of_variant = {"color": colors[i % len(colors)], "label": label, **style}
        x, y = spreads[metric].mean, accuracy.mean
        if y < near.min():
            floor = near.min() - row * (2 + np.count_nonzero((accuracies > y) & (accuracies < near.min())))
            axes.plot(x, floor, "v", **style_of_variant)
            centred = {"textcoords": "offset points", "ha": "center", "va": "top"}
            axes.annotate(f"{y:.1f}", (x, floor), (0, -5), fontsize=6, **centred)
        else:
            axes.errorbar(x, y, accuracy.deviation or 0, fmt=marker(variant), **style_of_variant)


def _legend(axes, published=()):
    """Everything named at the right of the axes, published points (name, x, y) drawn and named last."""
    _star(axes, published)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _star(axes, published):
    for i, (name, x, y) in enumerate(published):
        axes.plot(x, y, PUBLISHED[i % len(PUBLISHED)], markersize=10, color="black", alpha=0.7, label=name)


def _published_sizes(summary):
    """(label, bytes, top-1 in %) of published points; a drop is drawn from our float accuracy."""
    baseline = summary.variants.get(BASELINE, {}).get("top1_tflite")
    for point in _published(summary):
        values = {figure.metric: figure.published for figure in point.figures if figure.published is not None}
        size = values.get("gzip_bytes", values.get("tflite_bytes"))
        accuracy = values.get("top1_tflite")
        if size is None:
            continue
        compressed = "compressed, " if "gzip_bytes" in values else ""
        if accuracy is None and baseline is not None and "drop" in values:
            yield f"{point.name} ({compressed}published drop)", size, baseline.mean - values["drop"]
        elif accuracy is not None:
            yield f"{point.name} ({compressed}published)", size, accuracy


def _published(summary):
    """The published points of an experiment and data set."""
    key = (summary.experiment, summary.dataset)
    return [point for point in published_points() if (point.experiment, point.dataset) == key]


def _save(figure, path):
    with replacing(path) as part:
        # Without the Software entry a newer matplotlib does not change every file.
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
    return path
