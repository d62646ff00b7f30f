"""The record of a run: `<results>/<experiment>/<profile>-seed<k>/record.json`, with its .tflite files beside it."""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform

import numpy as np

from tfcompress.files import write_text

PROFILES = ("smoke", "quick", "full")
PACKAGES = ("keras", "tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")
FRACTIONS = ("top1", "top1_tflite", "val_top1", "top5_tflite", "sparsity", "macs_cut_papers")
HISTOGRAMS = "weight_histograms.json"
FILTER_NORMS = "filter_norms.json"
SIMILARITIES = "similarities.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of a network and its file.

    Attributes:
        variant: its name; the unpruned float file is `float32`, its QAT int8 file `int8-qat`.
        top1: test accuracy of the Keras model in [0, 1], or None.
        top1_tflite: test accuracy of the file by LiteRT in [0, 1], or None where only sizes and latency are measured.
        val_top1: accuracy on held-out training images in [0, 1], on which choices are made; or None.
        val_divergence: mean Kullback-Leibler divergence, in nats, of what the file says of held-out training images
            from what the float32 file says of them; None for that file, and where it was not measured.
        selected: whether it was chosen on validation images among others of its kind.
        params: number of parameters.
        macs: multiply-accumulates of one example.
        sparsity: fraction of the weights that are zero, in [0, 1].
        tflite: name of the file beside the record, or None where it is not kept.
        tflite_bytes: its size.
        gzip_bytes: its size after gzip -9.
        latency_ms: median of one inference on one thread, or None.
        macs_cut_papers: fraction of MACs removed as papers count them where they count differently, or None.
        top5_tflite: as top1_tflite, with the class among the first five, or None.
    """

    variant: str
    top1_tflite: float | None
    params: int
    macs: int
    sparsity: float
    tflite_bytes: int
    gzip_bytes: int
    top1: float | None = None
    val_top1: float | None = None
    selected: bool = False
    tflite: str | None = None
    latency_ms: float | None = None
    macs_cut_papers: float | None = None
    top5_tflite: float | None = None
    val_divergence: float | None = None

    def __post_init__(self):
        for name in FRACTIONS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"Row {self.variant!r}: {name} must lie in [0, 1]. Received: {name}={value}")
        for name in ("params", "macs", "tflite_bytes", "gzip_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"Row {self.variant!r}: {name} must be a count. Received: {name}={value!r}")
        if self.val_divergence is not None and not (math.isfinite(self.val_divergence) and self.val_divergence >= 0):
            raise ValueError(
                f"Row {self.variant!r}: val_divergence must not be negative. Received: {self.val_divergence}"
            )
        if self.latency_ms is not None and not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise ValueError(f"Row {self.variant!r}: latency_ms must be positive. Received: {self.latency_ms}")


@dataclasses.dataclass(frozen=True)
class Record:
    """One run of one experiment.

    Attributes:
        experiment: its name; another data set is another experiment.
        dataset: name of the data set.
        profile: smoke, quick or full.
        seed: the run's seed.
        command: command line that repeats the run.
        config: {hyperparameter: value} of all that the numbers depend on; not which variants were asked for.
        environment: see `environment`.
        seconds: {stage: wall-clock seconds}.
        rows: tuple of `Row`, one per variant.
    """

    experiment: str
    dataset: str
    profile: str
    seed: int
    command: str
    config: dict
    environment: dict
    seconds: dict
    rows: tuple

    def __post_init__(self):
        object.__setattr__(self, "rows", tuple(row if isinstance(row, Row) else Row(**row) for row in self.rows))
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}. Received: profile={self.profile!r}")
        variants = [row.variant for row in self.rows]
        if not variants or len(set(variants)) < len(variants):
            raise ValueError(f"rows must be at least one, each of another variant. Received: {variants}")


def write_record(record, folder):
    """Writes `record.json` in one step.

    Args:
        record: a `Record`.
        folder: `<results>/<experiment>/<profile>-seed<k>`; made if missing.

    Returns:
        The path written.

    Raises:
        ValueError: the folder belongs to another run, a value cannot be stored, or a .tflite file is missing beside the
            record or has another size than its row says.
    """
    path = pathlib.Path(folder) / "record.json"
    _check_place(record, path)
    _write_json(dataclasses.asdict(record), path)
    return path


def read_records(results):
    """Reads every record under a results folder.

    Args:
        results: the folder; `<experiment>/<profile>-seed<k>/record.json` below it.

    Returns:
        List of `Record`, ordered by path.

    Raises:
        ValueError: a record is corrupt or does not fit its folder; its path is named.
    """
    records = [read_record(path) for path in sorted(pathlib.Path(results).glob("*/*/record.json"))]
    return sorted(records, key=lambda record: (record.experiment, PROFILES.index(record.profile), record.seed))


def read_record(path):
    """Reads one `record.json`.

    Raises:
        ValueError: it is corrupt or does not fit its folder; its path is named.
    """
    path = pathlib.Path(path)
    try:
        record = Record(**json.loads(path.read_text()))
        _check_place(record, path)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a valid record: {error}") from error
    return record


def environment(threads=None):
    """What results depend on.

    Args:
        threads: number of threads used for training; default: the processors available to this process.

    Returns:
        dict: versions of Python and of each package in `PACKAGES` that is installed, `cpu`, `threads`.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**versions, "cpu": _cpu(), "threads": threads or _processors()}


def write_weight_histograms(before, after, folder, bins=81):
    """Writes the weights' distributions beside a record, for the plots.

    Args:
        before: {layer: array of weights} of the network before compression.
        after: the same of the compressed network; layers missing in one of them are left out.
        folder: the record's folder.
        bins: number of bins; an odd number has one that is centred at zero.

    Returns:
        The path written: {layer: {"edges": bins + 1 floats, "before": counts, "after": counts}}.
    """
    histograms = {}
    for layer in (name for name in before if name in after):
        limit = max(float(np.abs(before[layer]).max()), float(np.abs(after[layer]).max())) or 1.0
        edges = np.linspace(-limit, limit, bins + 1)
        counts = {name: np.histogram(w[layer], edges)[0].tolist() for name, w in (("before", before), ("after", after))}
        histograms[layer] = {"edges": [round(float(edge), 6) for edge in edges], **counts}
    path = pathlib.Path(folder) / HISTOGRAMS
    _write_json(histograms, path, indent=None)
    return path


def write_filter_norms(norms, folder):
    """Writes the norms of filters beside a record, for the plots.

    Args:
        norms: {title: {"before": norms of all filters, name of a variant: norms of those it kept, ...}}.
        folder: the record's folder.

    Returns:
        The path written.
    """
    rounded = {
        title: {name: [round(float(norm), 5) for norm in values] for name, values in variants.items()}
        for title, variants in norms.items()
    }
    path = pathlib.Path(folder) / FILTER_NORMS
    _write_json(rounded, path, indent=None)
    return path


def write_similarities(matrices, folder, shown=64):
    """Writes similarity matrices of filters beside a record, for the plots; of many filters, evenly chosen ones.

    Args:
        matrices: {title: {"kept": number of filters that are kept, "before": (N, N) cosines in which these come first,
            "after": (kept, kept) cosines}}.
        folder: the record's folder.
        shown: at most so many rows of each matrix are written.

    Returns:
        The path written: {title: {"kept", "filters": N, "kept_shown": rows of "before" that are kept, "before" and
        "after": lists of lists of percent}}.
    """
    stored = {}
    for title, layer in matrices.items():
        filters = len(layer["before"])
        rows = {name: _evenly(len(layer[name]), shown) for name in ("before", "after")}
        stored[title] = {
            "kept": layer["kept"],
            "filters": filters,
            "kept_shown": int(np.count_nonzero(rows["before"] < layer["kept"])),
            **{name: np.rint(100 * layer[name][np.ix_(i, i)]).astype(int).tolist() for name, i in rows.items()},
        }
    path = pathlib.Path(folder) / SIMILARITIES
    _write_json(stored, path, indent=None)
    return path


def _evenly(count, shown):
    return np.arange(count) if count <= shown else np.linspace(0, count - 1, shown).round().astype(int)


def _check_place(record, path):
    expected = (record.experiment, f"{record.profile}-seed{record.seed}")
    if path.absolute().parts[-3:-1] != expected:
        raise ValueError(f"its folder must be {'/'.join(expected)}. Received: {path.parent}")
    for row in record.rows:
        file = path.parent / row.tflite if row.tflite else None
        if file and (not file.is_file() or file.stat().st_size != row.tflite_bytes):
            raise ValueError(f"{row.tflite} is missing or has another size than {row.tflite_bytes:,} bytes")


def _write_json(value, path, indent=1):
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _cpu():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
