"""Tables: every variant of every experiment, and published | ours | verdict."""

import csv
import io
import pathlib
import re

from tfcompress.files import write_text
from tfcompress.reporting.published import published_points
from tfcompress.reporting.records import read_records
from tfcompress.reporting.summary import METRICS, summarize

SHOWN = (
    "top1_tflite",
    "top5_tflite",
    "drop",
    "val_divergence",
    "sparsity",
    "params_cut",
    "macs_cut",
    "macs_cut_papers",
    "tflite_bytes",
    "gzip_bytes",
    "latency_ms",
)
ACCURACY = ("top1", "top1_tflite", "top5_tflite", "drop")
COMPARISON_NAMES = ["point", "our variant", "figure", "published", "to reach", "ours", "verdict"]
SLACK = 1e-9
HEADER = """# Results

Written by `make tables` from the records in this folder; published numbers are in `tfcompress/reporting/published.csv`.
Accuracy is that of the `.tflite` file over the whole test set, by LiteRT; ± is the standard deviation over seeds. Drop
and cuts are against the float file of the same seed (gzip cut: compressed size against its raw size). "MACs cut as
papers count" is what SFP and FPGM would report for the same widths: they count the filters that the first convolution
of a block loses as lost in the second, too. Divergence is the mean Kullback-Leibler divergence of what a file says of
held-out training images from what the float file says. Latency is the median of single inferences on one thread,
without the matrix units (AMX) that servers have and phones lack, of the first seed; it compares within one table only,
as the processor (`environment` in record.json) is not that of every other.

Beside a published point stands the variant that meets most of its figures other than accuracy; of those the one with
the smallest divergence, which tells variants apart better than the accuracy on held-out images (that decides where a
candidate's divergence was not measured); then the smallest one. Test images choose nothing. Profile full is the
comparison that counts; quick is a short run of the same steps.
"""


README_BLOCK = ("<!-- results -->\n", "<!-- /results -->\n")


def write_tables(results, readme=None):
    """Writes `README.md`, `results.csv` and `comparison.csv` into a results folder.

    Profile smoke appears in none of them. The same records give the same bytes.

    Args:
        results: folder of the records.
        readme: a Markdown file that gets the comparisons of profile full between its lines `<!-- results -->` and
            `<!-- /results -->`, or None.

    Returns:
        The text of `README.md`.

    Raises:
        ValueError: there are no records of profile quick or full, one is corrupt, or `readme` lacks the two lines.
        OSError: `readme` cannot be read.
    """
    results = pathlib.Path(results)
    parts = _readme_parts(pathlib.Path(readme)) if readme else None
    summaries = summarize([record for record in read_records(results) if record.profile != "smoke"])
    if not summaries:
        raise ValueError(f"There are no records of profile quick or full under {results}.")
    summaries.sort(key=lambda summary: (summary.experiment, summary.profile))
    comparisons = {id(summary): compare_with_published(summary) for summary in summaries}
    text = "\n".join([HEADER, *(_section(summary, comparisons[id(summary)], results) for summary in summaries)])
    write_text(results / "results.csv", _csv([row for summary in summaries for row in _result_rows(summary)]))
    write_text(results / "comparison.csv", _csv([row for summary in summaries for row in comparisons[id(summary)]]))
    write_text(results / "README.md", text)
    if readme:
        full = [comparisons[id(summary)] for summary in summaries if summary.profile == "full"]
        write_text(pathlib.Path(readme), _filled(parts, [row for rows in full for row in rows]))
    return text


def compare_with_published(summary):
    """Sets ours beside every published point of an experiment and data set.

    Of the variants that a point allows, ours is the one that meets most of its targets (or published numbers, where we
    set no target) other than accuracy, among those the one that diverges least from the baseline on validation images
    (where that was not measured, the one with the best accuracy on them), and among equal ones the smallest after
    compression. Test accuracy chooses nothing.

    Args:
        summary: a `Summary`.

    Returns:
        List of dicts with keys experiment, profile, point, variant, metric, unit, published, reach, ours, deviation,
        verdict, source.
    """
    rows = []
    for point in published_points():
        if (point.experiment, point.dataset) != (summary.experiment, summary.dataset):
            continue
        variant = _choose(point, summary)
        for figure in point.figures if variant else ():
            spread = summary.variants[variant].get(figure.metric)
            rows.append(
                {
                    "experiment": summary.experiment,
                    "profile": summary.profile,
                    "point": point.name,
                    "variant": variant,
                    "metric": figure.metric,
                    "unit": METRICS[figure.metric].unit,
                    "published": figure.published,
                    "reach": figure.reach,
                    "ours": spread and round(spread.mean, 6),
                    "deviation": spread and spread.deviation and round(spread.deviation, 6),
                    "verdict": _verdict(figure, spread),
                    "source": figure.source,
                }
            )
    return rows


def _choose(point, summary):
    limits = {figure.metric: figure.limit for figure in point.figures if figure.limit is not None}
    targets = {figure.metric: figure.reach for figure in point.figures if figure.reach is not None}
    binding = {metric: limit for metric, limit in (targets or limits).items() if metric not in ACCURACY}

    allowed = [variant for variant in summary.variants if re.fullmatch(point.variants, variant)]
    held_out = "val_top1"
    if all("val_divergence" in summary.variants[variant] for variant in allowed):
        held_out = "val_divergence"

    def merit(variant):
        spreads = summary.variants[variant]
        met = sum(
            metric in spreads and _meets(metric, spreads[metric].mean, limit) for metric, limit in binding.items()
        )
        likeness = spreads[held_out].mean if held_out in spreads else 0
        return met, likeness if METRICS[held_out].higher_is_better else -likeness, -spreads["gzip_bytes"].mean

    return max(allowed, key=merit, default=None)


def _meets(metric, ours, limit):
    return ours >= limit - SLACK if METRICS[metric].higher_is_better else ours <= limit + SLACK


def _verdict(figure, spread):
    if spread is None or figure.limit is None:
        return ""
    words = []
    if figure.published is not None:
        words.append("as published or better" if _meets(figure.metric, spread.mean, figure.published) else "worse")
    if figure.reach is not None:
        words.append("target reached" if _meets(figure.metric, spread.mean, figure.reach) else "target missed")
    return ", ".join(words)


def _section(summary, comparison, results):
    seeds = ", ".join(map(str, summary.seeds))
    parts = [f"## {summary.experiment}, profile {summary.profile}\n", f"Data set {summary.dataset}; seeds {seeds}.\n"]
    if not summary.same_config:
        parts.append("**The seeds ran with different configurations.**\n")
    metrics = [name for name in SHOWN if _is_telling(name, summary)]
    parts.append(_markdown(["variant", *map(_heading, metrics)], _cells(summary, metrics)))
    if comparison:
        parts.append(_markdown(COMPARISON_NAMES, [_comparison_cells(row) for row in comparison]))
    folder = results / summary.experiment
    for plot in sorted(folder.glob(f"{summary.profile}-*.png")):
        parts.append(f"![{plot.stem}]({summary.experiment}/{plot.name})\n")
    return "\n".join(parts)


def _readme_parts(path):
    """What stands before and behind the block of results, with its two lines."""
    text = path.read_text(encoding="utf-8")
    start, end = README_BLOCK
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{path} must have one line {start.strip()} and behind it one line {end.strip()}.")
    return text[: text.index(start) + len(start)], text[text.index(end) :]


def _filled(parts, comparison):
    rows = [[row["experiment"], *_comparison_cells(row)] for row in comparison]
    return parts[0] + (_markdown(["experiment", *COMPARISON_NAMES], rows) if rows else "No full run yet.\n") + parts[1]


def _is_telling(name, summary):
    """Whether some variant has the metric; where nothing is cut, a column of zeros says nothing."""
    values = [spreads[name].mean for spreads in summary.variants.values() if name in spreads]
    return any(values) if name.endswith("_cut") else bool(values)


def _heading(name):
    metric = METRICS[name]
    return f"{metric.label} ({metric.unit})" if metric.unit else metric.label


def _cells(summary, metrics):
    rows = []
    for variant, spreads in summary.variants.items():
        seeds, all_seeds = spreads["params"].seeds, len(summary.seeds)
        name = variant if seeds == all_seeds else f"{variant} ({seeds} of {all_seeds} seeds)"
        rows.append([name, *(_number(metric, spreads.get(metric)) for metric in metrics)])
    return rows


def _comparison_cells(row):
    name = row["metric"]
    comparison = "≥" if METRICS[name].higher_is_better else "≤"
    published, reach = (
        f"{row[key]:,.{METRICS[name].digits}f}" if row[key] is not None else "" for key in ("published", "reach")
    )
    ours = f"{row['ours']:,.{METRICS[name].digits}f}" if row["ours"] is not None else "-"
    return [
        row["point"],
        row["variant"],
        _heading(name),
        published,
        reach and f"{comparison} {reach}",
        ours,
        row["verdict"],
    ]


def _number(name, spread):
    if spread is None:
        return ""
    digits = METRICS[name].digits
    deviation = f" ± {spread.deviation:,.{digits}f}" if spread.deviation else ""
    # Adding zero turns a negative zero, which rounding may leave, into zero.
    return f"{round(spread.mean, digits) + 0.0:,.{digits}f}{deviation}"


def _markdown(names, rows):
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _result_rows(summary):
    for variant, spreads in summary.variants.items():
        row = {"experiment": summary.experiment, "dataset": summary.dataset, "profile": summary.profile}
        row |= {"seeds": spreads["params"].seeds, "variant": variant}
        for name in METRICS:
            spread = spreads.get(name)
            row[name] = round(spread.mean, 6) if spread else None
            row[f"{name}_deviation"] = round(spread.deviation, 6) if spread and spread.deviation is not None else None
        yield row


def _csv(rows):
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
