"""Variants of a network, measured on their files, and the record of them."""

import contextlib
import dataclasses
import hashlib
import json
import re
import sys

from experiments.runner import write_json

try:
    import fcntl
except ImportError:  # Windows, where no two runs may share a work directory
    fcntl = None

NOTHING = "nothing"  # what --quantized names where no network is to be brought to int8


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row to be.

    Attributes:
        name: as in the record.
        model: the Keras 3 or tf_keras model.
        profile: `tfcompress.Profile` of the Keras 3 network that it is, or that it was before quantization.
        file: the `TFLiteFile` made of it.
        macs_cut_papers: fraction of the MACs removed as papers count, or None.
    """

    name: str
    model: object
    profile: object
    file: object
    macs_cut_papers: float | None = None


def quantized_name(name):
    """The name of the int8 variant of a float network."""
    return "int8-qat" if name == "float32" else f"{name}-int8-qat"


def export(task, name, model, network, precision, split=None, macs_cut_papers=None):
    """Exports a model as the variant `name`.

    Args:
        task: the `Run`.
        name: the variant's name, and its file's.
        model: the Keras 3 or tf_keras model.
        network: the Keras 3 network that it is, or that it was before quantization.
        precision: as for `export_tflite`.
        split: whose training images give the ranges of a float model's int8 file.
        macs_cut_papers: fraction of the MACs removed as papers count, or None.
    """
    from tfcompress import export_tflite, profile

    task.directory.mkdir(parents=True, exist_ok=True)
    calibration = split.train[0][:500].astype("float32") / 255 if split else None
    file = export_tflite(model, task.directory / f"{name}.tflite", precision, calibration)
    print(f"   {file.path}: {file.bytes:,} bytes, {file.gzip_bytes:,} gzip", flush=True)
    return Variant(name, model, profile(network), file, macs_cut_papers)


def record(task, dataset, split, variants, select, top5=False):
    """Measures every file on held-out and test images and writes the record, with the int8 files beside it.

    A file that was measured before is not evaluated again. What `earlier` holds of other variants stays in the record.
    The latencies of files that are still there are measured again beside the new ones; those of the others go, since
    times of two runs do not compare.

    Args:
        task: the `Run`.
        dataset: name of the data set.
        split: its `Split`; None for networks that know nothing: sizes and latencies are all that counts of them, and
            their files stay in the run directory.
        variants: list of `Variant`; the first is the float baseline.
        select: function of the rows that returns the one chosen on held-out images, or None.
        top5: whether a test image also counts where its class is among the first five.

    Returns:
        The selected row, or None.
    """
    print("\n== measure", flush=True)
    measured = {variant.name: _row(variant, split, top5, baseline=variants[0]) for variant in variants}
    with _alone(task):
        return _add(task, dataset, split, variants, measured, select)


@contextlib.contextmanager
def _alone(task):
    """Waits until no other run of this seed in this work directory reads, times or writes the record."""
    path = task.workdir / f"{task.experiment}-{task.profile}-seed{task.seed}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)  # which ends with the file, or the process
        yield


def _add(task, dataset, split, variants, measured, select):
    """Writes the record with measured variants among what it holds of others; returns the selected row, or None."""
    from tfcompress import benchmark_interleaved

    before = earlier(task, variants[0].file.gzip_bytes)
    rows = rows_of(before)
    files = {name: task.directory / f"{name}.tflite" for name in rows}
    files |= {name: task.result_directory / row.tflite for name, row in rows.items() if row.tflite}
    # One of another size is of another network.
    files = {
        name: path for name, path in files.items() if path.exists() and path.stat().st_size == rows[name].tflite_bytes
    }
    files |= {variant.name: variant.file.path for variant in variants}
    latencies = dict(zip(files, benchmark_interleaved(list(files.values()))))
    published = []
    for name in _outdated(task, variants, rows):
        print(f"{name} is of the network that this run has trained anew: its row goes.", file=sys.stderr)
        del rows[name]
        latencies.pop(name, None)
    for variant in variants:
        row = measured[variant.name]
        # The first seed's files are enough to look at; a float file, and what knows nothing, is for nobody's phone.
        if split is not None and task.seed == 0 and variant.file.precision == "int8":
            published.append(variant.file.path)
            row = dataclasses.replace(row, tflite=variant.file.path.name)
        rows[variant.name] = row
    for name, latency in latencies.items():
        rows[name] = dataclasses.replace(rows[name], latency_ms=latency.median)
    rows = [dataclasses.replace(row, selected=False) for row in rows.values()]
    selected = select(rows)
    # Files and record at once: a record whose files have other sizes is refused.
    for path in published:
        task.publish(path)
    write(task, dataset, [dataclasses.replace(row, selected=row is selected) for row in rows], before)
    return selected


def _outdated(task, variants, rows):
    """Names of the int8 rows whose float network this run has trained again, and not got the same one."""
    names = {variant.name for variant in variants}
    return [
        quantized_name(variant.name)
        for variant in variants
        if variant.name in task.seconds
        and variant.name in rows
        and rows[variant.name].gzip_bytes != variant.file.gzip_bytes
        and quantized_name(variant.name) in rows.keys() - names
    ]


def earlier(task, gzip_bytes=None):
    """The record that this run adds to, or None: an earlier one of this configuration, where variants can be chosen.

    Args:
        task: the `Run`.
        gzip_bytes: compressed size of this run's float32 file. Another one in a record that does not name its weights,
            as older ones do not, is of other weights: what was made of those is not added to. In one that does, it is
            of another processor, which folds the BatchNorms into them with other rounding.
    """
    from tfcompress.reporting import environment

    if not {"variants", "recipes"} & {field.name for field in dataclasses.fields(task.config)}:
        return None
    before = _recorded(task)
    if before and _versions(before.environment) != _versions(environment()):
        print("The record was written by other versions: this run replaces all of it.", file=sys.stderr)
        return None
    row = rows_of(before).get("float32")
    if row and gzip_bytes and row.gzip_bytes != gzip_bytes and "baseline" not in before.config:
        print("The record is of another baseline: this run replaces all of it.", file=sys.stderr)
        return None
    return before


def rows_of(before):
    """{variant: row} of the record that a run adds to, or of None, without latencies: they are of another run."""
    return {row.variant: dataclasses.replace(row, latency_ms=None) for row in before.rows} if before else {}


def _versions(environment):
    return {name: value for name, value in environment.items() if name not in ("cpu", "threads")}


def record_so_far(task, dataset, split, variants, select, top5=False):
    """Does what `record` does, unless the results hold all of it: a run that is stopped leaves what it has measured.

    Args:
        task, dataset, split, variants, select, top5: as for `record`.

    Returns:
        What `record` does; None where it had nothing to do.
    """
    if {variant.name for variant in variants} - rows_of(earlier(task, variants[0].file.gzip_bytes)).keys():
        return record(task, dataset, split, variants, select, top5)
    return None


def recorded_variants(task):
    """Names of the variants in the record of this configuration."""
    stored = _recorded(task)
    return [row.variant for row in stored.rows] if stored else []


def _recorded(task):
    """The record of this configuration in the results, or None."""
    from tfcompress.reporting import read_record

    path = task.result_directory / "record.json"
    if not path.exists():
        return None
    try:
        stored = read_record(path)
    except ValueError as error:
        print(f"{error}: this run replaces it.", file=sys.stderr)
        return None
    now = task.configuration
    # What a record does not name could not be chosen yet, and its baseline was not noted.
    absent = {**{field.name: field.default for field in dataclasses.fields(task.config)}, "baseline": task.baseline}
    before = {**{name: absent[name] for name in now}, **stored.config}
    now, before = (json.loads(json.dumps(config)) for config in (now, before))
    # What no stage depends on may differ, and older records name some of it. The baseline is here the digest of its
    # weights, whatever file an option of this name took it from.
    free = {field.name for field in dataclasses.fields(task.config) if field.metadata["identity"] is False}
    free -= {"baseline"}
    others = [
        f"{name} {before[name]}, now {now.get(name)}"
        for name in before
        if name not in free and before[name] != now.get(name)
    ]
    if others:
        print(f"{path} is of another configuration ({'; '.join(others)}): this run replaces it.", file=sys.stderr)
    return None if others else stored


def write(task, dataset, rows, before=None):
    """Writes the record of a run with these rows, and removes what belongs to variants that it does not hold.

    Args:
        task: the `Run`.
        dataset: name of the data set.
        rows: list of `tfcompress.reporting.Row`.
        before: the record that it adds to: its command comes before this run's.
    """
    from tfcompress.reporting import Record, environment, write_record

    needed = {"--quantized"} if hasattr(task.config, "quantized") else set()
    names = {row.variant for row in rows}
    command = _both(before.command, task.command, needed) if before else task.command
    record = Record(
        experiment=task.experiment,
        dataset=dataset,
        profile=task.profile,
        seed=task.seed,
        command=" && ".join(_measured_only(part, names) for part in command.split(" && ")),
        config=task.configuration,
        environment=environment(),
        seconds={**(before.seconds if before else {}), **task.seconds},
        rows=tuple(rows),
    )
    print(f"written: {write_record(record, task.result_directory)}")
    names |= {name.removesuffix("-int8-qat") for name in names}
    for path in task.result_directory.iterdir():
        name = re.sub(r"\.(plan\.json|layers\.csv|keras|tflite)$", "", path.name)
        # What plots are drawn from is of the record that this one replaces.
        drawn = before is None and path.suffix == ".json" and path.name not in ("record.json", f"{name}.plan.json")
        if drawn or (name != path.name and name not in names):
            path.unlink()


def _both(before, now, needed):
    """One command line for two runs that differ in the variants they name; else both, one behind the other.

    Of a run that began with what the record holds, and went on, that is its own.

    Args:
        before: the command of the record, maybe several joined by &&.
        now: the command of this run.
        needed: flags without which a command means something else when variants are added to it.
    """
    *others, last = before.split(" && ")
    words, named = zip(*map(_split, (last, now)))
    alike = words[0] == words[1] and named[0].keys() == named[1].keys()
    if alike and all(_begins(named[1][flag], named[0][flag]) for flag in named[0]):
        return " && ".join([*others, now])
    if not alike or not named[0] or needed - named[0].keys():
        return " && ".join(dict.fromkeys([*others, last, now]))
    merged = {flag: dict.fromkeys(named[0][flag] + named[1][flag]) for flag in named[0]}
    lists = [f"{flag}={','.join(_unless_alone(NOTHING, names))}" for flag, names in merged.items()]
    return " && ".join([*others, " ".join([*words[0], *lists])])


def _measured_only(command, measured):
    """A command line that names no variant that has no row: those of a run that was stopped come with its next one."""
    words, lists = _split(command)
    for flag, names in lists.items():
        if flag == "--quantized":
            lists[flag] = [name for name in names if quantized_name(name) in measured] or [NOTHING]
        else:
            lists[flag] = [name for name in names if measured & {name, quantized_name(name)}] or names
    return " ".join([*words, *(f"{flag}={','.join(names)}" for flag, names in lists.items())])


def _begins(names, first):
    first = [name for name in first if name != NOTHING]
    return names[: len(first)] == first


def _unless_alone(word, names):
    return [name for name in names if name != word or len(names) == 1]


def _split(command):
    """The words of a command, and its flags that name what is trained: {flag: names}."""
    words = command.split()
    lists = [word for word in words if re.match("--(variants|recipes|quantized)=", word)]
    return [word for word in words if word not in lists], {
        flag: names.split(",") for flag, names in (word.split("=") for word in lists)
    }


def _row(variant, split, top5, baseline):
    from tfcompress import sparsity_of
    from tfcompress.reporting import Row

    return Row(
        variant=variant.name,
        params=variant.profile.params,
        macs=variant.profile.macs,
        sparsity=sparsity_of(variant.model),
        tflite_bytes=variant.file.bytes,
        gzip_bytes=variant.file.gzip_bytes,
        macs_cut_papers=variant.macs_cut_papers,
        **(_measured(variant, split, top5, baseline) if split else {"top1_tflite": None}),
    )


def _measured(variant, split, top5, baseline):
    """What test and held-out images say of a variant, by the names of a `Row`; kept beside the file."""
    from tfcompress import evaluate_tflite, predict_tflite
    from tfcompress.outputs import divergence
    from tfcompress.training import accuracy
    from tfcompress.training.checkpoint import digest

    path, float_path = variant.file.path, baseline.file.path
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, float_path)]
    digests.append(digest([*split.test, *split.validation]))
    kept = path.with_suffix(".measured.json")
    if kept.exists():
        stored = json.loads(kept.read_text())
        if stored["sha256"] == digests:
            return stored["measured"]
    measured = {
        "top1": accuracy(variant.model, *split.test),
        "top1_tflite": evaluate_tflite(path, *split.test),
        "val_top1": evaluate_tflite(path, *split.validation),
    }
    if variant is not baseline:
        outputs = (predict_tflite(file, split.validation[0]) for file in (float_path, path))
        measured["val_divergence"] = divergence(*outputs)
    if top5:
        measured["top5_tflite"] = evaluate_tflite(path, *split.test, k=min(5, variant.model.output_shape[-1]))
    print(f"   {variant.name}: {measured['top1_tflite']:.2%} (held-out {measured['val_top1']:.2%})", flush=True)
    write_json(kept, {"sha256": digests, "measured": measured})
    return measured
