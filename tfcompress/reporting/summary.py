"""Records of several seeds as means and spreads."""

import dataclasses
import re
import statistics

BASELINE = "float32"
INT8 = ("int8-qat", "safe-int8-qat")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        label: its heading.
        unit: unit of the numbers in tables and in published.csv.
        digits: digits after the point.
        higher_is_better: whether a target is a minimum.
    """

    label: str
    unit: str
    digits: int
    higher_is_better: bool


METRICS = {
    "top1": Metric("top-1, Keras", "%", 2, True),
    "top1_tflite": Metric("top-1, file", "%", 2, True),
    "top5_tflite": Metric("top-5, file", "%", 2, True),
    "val_top1": Metric("top-1, validation", "%", 2, True),
    "val_divergence": Metric("divergence, held-out", "nats", 4, False),
    "drop": Metric("drop", "pt", 2, False),
    "sparsity": Metric("sparsity", "%", 1, True),
    "params": Metric("parameters", "", 0, False),
    "params_cut": Metric("parameters cut", "%", 1, True),
    "macs": Metric("MACs", "", 0, False),
    "macs_cut": Metric("MACs cut", "%", 1, True),
    "macs_cut_papers": Metric("MACs cut as papers count", "%", 1, True),
    "tflite_bytes": Metric(".tflite", "B", 0, False),
    "tflite_cut": Metric(".tflite cut", "%", 1, True),
    "gzip_bytes": Metric("gzip -9", "B", 0, False),
    "gzip_cut": Metric("gzip cut", "%", 1, True),
    "latency_ms": Metric("latency", "ms", 3, False),
    "speedup": Metric("times faster than int8", "", 2, True),
}
# Of the first seed only: all seeds' networks have the same layers, and times of two runs do not compare.
TIMES = ("latency_ms", "speedup")
PERCENT = ("top1", "top1_tflite", "top5_tflite", "val_top1", "sparsity", "macs_cut_papers")


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: its mean.
        deviation: its sample standard deviation; None for one seed.
        seeds: how many seeds have it.
    """

    mean: float
    deviation: float | None
    seeds: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """All seeds of one experiment and profile.

    Attributes:
        experiment, dataset, profile: as in the records.
        seeds: tuple of seeds.
        variants: {variant: {metric: `Spread`}}, families together; metrics that not all its records have are absent.
        same_config: whether all seeds ran with the same configuration, as far as all records name it.
    """

    experiment: str
    dataset: str
    profile: str
    seeds: tuple
    variants: dict
    same_config: bool


def summarize(records):
    """Means over seeds, for every experiment, data set and profile on its own.

    Args:
        records: list of `Record`.

    Returns:
        List of `Summary` in the order of the records. Units are those of `METRICS`; `drop`, `tflite_cut`,
        `gzip_cut`, `params_cut` and `macs_cut` refer to the file `float32` of the same record, `speedup` to the int8
        file from which nothing was removed.
    """
    groups = {}
    for record in records:
        groups.setdefault((record.experiment, record.dataset, record.profile), []).append(record)
    return [_summary(key, group) for key, group in groups.items()]


def _summary(key, records):
    values = {}
    for record in records:
        baseline, int8 = (next((r for r in record.rows if r.variant in names), None) for names in ((BASELINE,), INT8))
        for row in record.rows:
            for metric, value in figures(row, baseline, int8).items():
                if metric not in TIMES or record is records[0]:
                    values.setdefault(row.variant, {}).setdefault(metric, []).append(value)
    variants = {
        variant: {
            metric: _spread(seeds)
            for metric, seeds in values[variant].items()
            if metric in TIMES or len(seeds) == len(values[variant]["params"])
        }
        for variant in _ordered(values)
    }
    named = set.intersection(*(set(record.config) for record in records))
    same_config = all(record.config[name] == records[0].config[name] for record in records for name in named)
    return Summary(*key, tuple(record.seed for record in records), variants, same_config)


def _ordered(variants):
    """Variants that differ in numbers only stand together, by these numbers, where the first of them stood."""
    families = {}
    for variant in variants:
        families.setdefault(re.sub(r"\d+", "#", variant), []).append(variant)
    for family in families.values():
        yield from sorted(family, key=lambda variant: [int(digits) for digits in re.findall(r"\d+", variant)])


def figures(row, baseline, int8):
    """{metric: value} of one `Row`, in the units of `METRICS`; what is unknown is absent."""
    values = {name: getattr(row, name) for name in METRICS if getattr(row, name, None) is not None}
    values.update({name: 100 * values[name] for name in PERCENT if name in values})
    if baseline is not None and row is not baseline:
        if None not in (baseline.top1_tflite, row.top1_tflite):
            values["drop"] = 100 * (baseline.top1_tflite - row.top1_tflite)
        values["params_cut"] = 100 * (1 - row.params / baseline.params)
        values["macs_cut"] = 100 * (1 - row.macs / baseline.macs)
        values["tflite_cut"] = 100 * (1 - row.tflite_bytes / baseline.tflite_bytes)
        values["gzip_cut"] = 100 * (1 - row.gzip_bytes / baseline.tflite_bytes)
    if int8 is not None and row is not int8 and row.latency_ms and int8.latency_ms:
        values["speedup"] = int8.latency_ms / row.latency_ms
    return values


def _spread(values):
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))
