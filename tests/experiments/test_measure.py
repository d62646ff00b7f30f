"""A run that is stopped leaves a record of what it has measured, and a finished one is not measured twice."""

import dataclasses
import functools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import tfcompress
from experiments import diversify, measure, resnet
from experiments.mobilenet import PROFILES
from experiments.runner import Run
from tfcompress.reporting import Row, environment

SIZES = {"params": 1, "macs": 1, "sparsity": 0.0, "tflite_bytes": 4, "gzip_bytes": 1}


def test_record_so_far_is_written_when_the_results_lack_a_variant(tmp_path, monkeypatch):
    written = []
    task = Run("mobilenet", "smoke", 0, PROFILES["smoke"], "", tmp_path / "runs", tmp_path / "results")

    def record(task, dataset, split, variants, select, top5):
        written.append([variant.name for variant in variants])
        rows = [Row(variant.name, top1_tflite=None, **SIZES) for variant in variants]
        measure.write(task, dataset, rows)

    monkeypatch.setattr(measure, "record", record)

    def so_far(*names, task=task):
        file = SimpleNamespace(gzip_bytes=SIZES["gzip_bytes"])
        measure.record_so_far(task, "digits", None, [SimpleNamespace(name=name, file=file) for name in names], None)

    so_far("float32")
    so_far("float32", "int8-qat")
    so_far("float32")
    assert written == [["float32"], ["float32", "int8-qat"]]
    longer = dataclasses.replace(task, config=dataclasses.replace(task.config, finetune_epochs=2))
    so_far("float32", task=longer)
    so_far("float32", task=dataclasses.replace(longer, seed=1))
    assert written[2:] == [["float32"], ["float32"]]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A function that records variants; every measurement of a latency takes a millisecond longer than the last."""
    milliseconds = iter(range(1, 100))
    monkeypatch.setattr(
        measure, "_row", lambda variant, split, top5, baseline: Row(variant.name, top1_tflite=0.5, **SIZES)
    )
    monkeypatch.setattr(
        tfcompress, "benchmark_interleaved", lambda paths: [SimpleNamespace(median=next(milliseconds)) for _ in paths]
    )

    def record(
        command,
        *names,
        profile=PROFILES["smoke"],
        variants=("sparse50",),
        seconds=None,
        content=b"1234",
        gzip_bytes=SIZES["gzip_bytes"],
        baseline="",
        so_far=False,
        **changes,
    ):
        config = dataclasses.replace(profile, variants=variants, **changes)
        task = Run(
            "mobilenet", "smoke", 0, config, command, tmp_path / "runs", tmp_path / "results", seconds=seconds or {}
        )
        task.baseline = baseline
        task.directory.mkdir(parents=True, exist_ok=True)
        made = []
        for name in names:
            path, precision = task.directory / f"{name}.tflite", name.partition("-")[0]
            file = SimpleNamespace(path=path, precision=precision, gzip_bytes=gzip_bytes)
            file.path.write_bytes(content)
            made.append(SimpleNamespace(name=name, file=file))
        (measure.record_so_far if so_far else measure.record)(task, "digits", (), made, lambda rows: rows[-1])
        return json.loads((task.result_directory / "record.json").read_text())

    return record


def test_chosen_variants_are_added_to_the_record(measured):
    measured("first", "float32", "int8-qat", seconds={"int8-qat": 3.0})
    both = measured("second", "float32", "int8-more", seconds={"int8-more": 4.0})
    assert both["command"] == "first && second" and both["seconds"] == {"int8-qat": 3.0, "int8-more": 4.0}
    assert [row["variant"] for row in both["rows"]] == ["float32", "int8-qat", "int8-more"]
    assert [row["selected"] for row in both["rows"]] == [False, False, True]
    # The float file is measured with the new ones, and that in the results, too.
    assert sorted(row["latency_ms"] for row in both["rows"]) == [3, 4, 5]
    again = measured("second", "float32", "int8-more")
    assert again["command"] == "first && second" and len(again["rows"]) == 3


def test_what_another_run_adds_meanwhile_stays(measured, monkeypatch):
    row_of, other_runs = measure._row, iter(["int8-other"])

    def slow(variant, *arguments, **options):
        for name in other_runs:
            measured("other", "float32", name)
        return row_of(variant, *arguments, **options)

    monkeypatch.setattr(measure, "_row", slow)
    rows = measured("this", "float32", "int8-qat")["rows"]
    assert {row["variant"] for row in rows} == {"float32", "int8-other", "int8-qat"}


@pytest.mark.skipif(not measure.fcntl, reason="Windows has no such lock")
def test_runs_that_end_at_once_wait_for_each_other(measured, monkeypatch):
    benchmark = tfcompress.benchmark_interleaved

    def slow(paths):
        time.sleep(0.2)  # in which the other run would read the record that this one is about to replace
        return benchmark(paths)

    monkeypatch.setattr(tfcompress, "benchmark_interleaved", slow)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: measured(name, "float32", f"int8-{name}"), "abc"))
    rows = measured("d", "float32")["rows"]
    assert sorted(row["variant"] for row in rows) == ["float32", "int8-a", "int8-b", "int8-c"]


def test_one_command_names_what_several_trained(measured):
    command = "python -m experiments.mobilenet --profile=smoke"
    measured(f"{command} --variants=a,b", "float32", "a-int8-qat", "b-int8-qat")
    merged = f"{command} --variants=a,b,c"
    assert measured(f"{command} --variants=b,c", "float32", "c-int8-qat")["command"] == merged
    merged += f" && {command} --baseline=x --variants=a"
    assert measured(f"{command} --baseline=x --variants=a", "float32")["command"] == merged
    assert measured(command, "float32")["command"] == f"{merged} && {command}"


def test_command_names_only_what_is_measured(measured):
    """A run that is stopped has been asked for more; the next one adds what it measures."""
    command = "python -m experiments.resnet --profile=smoke"
    added = functools.partial(measured, profile=resnet.PROFILES["smoke"], variants=("l2-macs54-every",))
    asked = f"{command} --variants=a,b --quantized=float32,a"
    assert added(asked, "float32")["command"] == f"{command} --variants=a,b --quantized=nothing"
    assert added(asked, "float32", "a")["command"] == f"{command} --variants=a --quantized=nothing"
    assert added(asked, "float32", "a", "a-int8-qat")["command"] == f"{command} --variants=a --quantized=a"
    assert added(asked, "float32", "b", "int8-qat")["command"] == f"{command} --variants=a,b --quantized=a,float32"


def test_commands_that_leave_open_what_is_quantized_stay_two(measured):
    """Each quantizes the first of its own variants."""
    one, other = (f"python -m experiments.resnet --variants={name}" for name in ("l2-macs54-every", "l1-macs54-every"))
    profile, variants = resnet.PROFILES["smoke"], ("l2-macs54-every",)
    measured(one, "float32", profile=profile, variants=variants)
    assert measured(other, "float32", profile=profile, variants=variants)["command"] == f"{one} && {other}"


def test_one_run_that_records_each_variant_is_one_command(measured):
    """It need not say what is quantized: nothing was added to it."""
    command = "python -m experiments.resnet --variants=a,b,c"
    added = functools.partial(measured, command, profile=resnet.PROFILES["smoke"], variants=("l2-macs54-every",))
    added("float32", "a")
    added("float32", "a", "b")
    assert added("float32", "a", "b", "c")["command"] == command


def test_nothing_to_quantize_is_named_only_where_nothing_is(measured):
    command = "python -m experiments.resnet --variants"
    profile = resnet.PROFILES["smoke"]
    added = functools.partial(measured, profile=profile, variants=("l2-macs54-every",))
    one = added(f"{command}=a --quantized=nothing", "float32", "a")["command"]
    two = added(f"{command}=b --quantized=nothing", "float32", "b")["command"]
    three = added(f"{command}=c --quantized=c", "float32", "c", "c-int8-qat")["command"]
    assert one == f"{command}=a --quantized=nothing" and two == f"{command}=a,b --quantized=nothing"
    assert three == f"{command}=a,b,c --quantized=c"


def test_variants_of_another_baseline_are_replaced(measured, tmp_path, capsys):
    measured("first", "float32", "int8-qat")  # as records were before they named their baseline and every option
    path = tmp_path / "results" / "mobilenet" / "smoke-seed0" / "record.json"
    record = json.loads(path.read_text())
    del record["config"]["baseline_cutout"]
    record["config"]["variants"] = ["int8-qat"]  # chosen, and no part of the configuration since
    path.write_text(json.dumps(record))
    assert len(measured("second", "float32", "int8-b", baseline="aa")["rows"]) == 3
    third = measured("third", "float32", "int8-c", baseline="aa")
    assert len(third["rows"]) == 4 and third["config"]["baseline"] == "aa"
    assert capsys.readouterr().err == ""
    plans = [path.with_name(f"{name}.plan.json") for name in ("b", "d")]
    for plan in plans:
        plan.write_text("{}")
    rows = measured("fourth", "float32", "int8-d", "d-int8-qat", baseline="bb")["rows"]
    assert [row["variant"] for row in rows] == ["float32", "int8-d", "d-int8-qat"]
    assert "of another configuration (baseline aa, now bb): this run replaces it" in capsys.readouterr().err
    assert [plan.exists() for plan in plans] == [False, True]
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"record.json", "int8-d.tflite", "d.plan.json"}


def test_variants_of_a_float_file_of_other_bytes_are_replaced(measured, capsys):
    """Where the record does not name its baseline; where it does, another processor wrote the file."""
    measured("first", "float32", "int8-qat")
    rows = measured("second", "float32", "int8-b", gzip_bytes=2, baseline="aa")["rows"]
    assert [row["variant"] for row in rows] == ["float32", "int8-b"]
    assert "another baseline" in capsys.readouterr().err
    rows = measured("third", "float32", "int8-c", gzip_bytes=3, baseline="aa")["rows"]
    assert [row["variant"] for row in rows] == ["float32", "int8-b", "int8-c"]
    assert capsys.readouterr().err == ""


def test_weights_from_another_file_are_another_baseline(measured, capsys):
    """Also where the option that names the file is called as the digest of its weights."""
    profile, variants = diversify.PROFILES["smoke"], ("diversity-a",)
    record = functools.partial(measured, profile=profile, variants=variants)
    record("first", "float32", "diversity-a", baseline="aa")
    assert len(record("second", "float32", "diversity-b", baseline="aa")["rows"]) == 3
    assert len(record("third", "float32", "diversity-b", baseline="bb")["rows"]) == 2
    assert "baseline aa, now bb" in capsys.readouterr().err


def test_stopped_measurement_leaves_the_record_as_it_was(measured, tmp_path, monkeypatch):
    first = measured("first", "float32", "int8-qat")
    folder = tmp_path / "results" / "mobilenet" / "smoke-seed0"

    def stop(variant, split, top5, baseline):
        if variant.name == "int8-other":
            raise KeyboardInterrupt
        return Row(variant.name, top1_tflite=0.5, **{**SIZES, "tflite_bytes": 5})

    monkeypatch.setattr(measure, "_row", stop)
    with pytest.raises(KeyboardInterrupt):
        measured("second", "int8-qat", "int8-other", content=b"12345")
    assert (folder / "int8-qat.tflite").read_bytes() == b"1234"
    assert json.loads((folder / "record.json").read_text()) == first


def test_latencies_are_measured_again_or_go(measured, tmp_path):
    measured("first", "float32", "int8-qat", "float16", "float8")
    for name in ("int8-qat", "float8"):
        (made,) = tmp_path.glob(f"runs/*/{name}.tflite")
        made.unlink()
    rows = measured("second", "float32")["rows"]
    # The int8 file is in the results, the float16 file in the run directory.
    assert {row["variant"]: row["latency_ms"] is None for row in rows} == {
        "float32": False, "int8-qat": False, "float16": False, "float8": True,
    }  # fmt: skip
    assert min(row["latency_ms"] or 9 for row in rows) == 5


def test_latency_is_not_that_of_a_file_of_another_network(measured, tmp_path):
    measured("first", "float32", "float16")
    (made,) = tmp_path.glob("runs/*/float16.tflite")
    made.write_bytes(b"12345")
    rows = measured("second", "float32")["rows"]
    assert [(row["variant"], row["latency_ms"]) for row in rows] == [("float32", 3), ("float16", None)]


def test_int8_row_goes_with_the_float_network_it_was_made_of(measured, tmp_path, capsys):
    made = ("float32", "a", "a-int8-qat", "b-int8-qat")
    measured = functools.partial(measured, baseline="aa")
    measured("first", *made, seconds={"a": 1.0})
    # The same network again, or one of another processor that this run has not trained: it stays.
    assert len(measured("second", "a", seconds={"a": 1.0})["rows"]) == 4
    assert len(measured("third", "a", gzip_bytes=2)["rows"]) == 4
    rows = measured("fourth", "float32", "a", gzip_bytes=2, seconds={"a": 2.0})["rows"]
    assert [row["variant"] for row in rows] == ["float32", "a", "b-int8-qat"]
    assert "a-int8-qat is of the network that this run has trained anew" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("results/*/*/*.tflite")] == []


def test_a_damaged_record_is_replaced(measured, tmp_path, capsys):
    """A publication that was killed leaves files of other sizes than the record says."""
    measured("first", "float32", "int8-qat")
    (file,) = tmp_path.glob("results/*/*/int8-qat.tflite")
    file.write_bytes(b"1")
    assert [row["variant"] for row in measured("second", "float32", "int8-b")["rows"]] == ["float32", "int8-b"]
    assert "another size than 4 bytes: this run replaces it" in capsys.readouterr().err


def test_what_plots_are_drawn_from_goes_with_its_record(measured, tmp_path):
    measured("first", "float32", "int8-qat")
    (record,) = tmp_path.glob("results/*/*/record.json")
    norms = record.with_name("filter_norms.json")
    norms.write_text("{}")
    measured("second", "float32", "int8-b")
    assert norms.exists()
    measured("third", "float32", finetune_epochs=2)
    assert not norms.exists()


def test_another_configuration_and_other_versions_replace_the_record(measured, monkeypatch, capsys):
    measured("first", "float32", "int8-qat")
    # A whole run adds to it: what it does not train took hours.
    assert [row["variant"] for row in measured("all", "float32", variants=())["rows"]] == ["float32", "int8-qat"]
    other = measured("longer", "float32", finetune_epochs=2)
    assert other["command"] == "longer" and len(other["rows"]) == 1
    measured("first", "float32", "int8-qat")
    monkeypatch.setattr("tfcompress.reporting.environment", lambda: {**environment(), "python": "4.0"})
    assert len(measured("elsewhere", "float32", so_far=True)["rows"]) == 1
    assert "other versions" in capsys.readouterr().err
