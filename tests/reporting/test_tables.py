"""Tables and plots: means, drops and verdicts by hand, on a results folder made up for it."""

import csv
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import resnet
from tfcompress.reporting import (
    Record,
    Row,
    read_records,
    write_filter_norms,
    write_record,
    write_similarities,
    write_weight_histograms,
)
from tfcompress.reporting.__main__ import main
from tfcompress.reporting.plots import _accuracy_against_cut
from tfcompress.reporting.published import published_points
from tfcompress.reporting.summary import METRICS, summarize
from tfcompress.reporting.tables import write_tables

FLOAT = Row("float32", 0.994, 431080, 2293000, 0.0, 1726000, 1581850, val_top1=0.995, latency_ms=0.1)
ROWS = (
    FLOAT,
    Row("int8-qat", 0.9935, 431080, 2293000, 0.0, 436400, 433000, val_top1=0.99),
    Row("sparse50-int8-qat", 0.9936, 431080, 2293000, 0.5, 436400, 300000, val_top1=0.994),
    Row("sparse90-int8-qat", 0.9930, 431080, 2293000, 0.9, 436400, 43000, val_top1=0.993),
    Row("sparse98-int8-qat", 0.9940, 431080, 2293000, 0.98, 436400, 15000, val_top1=0.98),
)


def _record(seed=0, rows=ROWS, **change):
    fields = {
        "experiment": "lenet",
        "dataset": "mnist",
        "profile": "full",
        "command": "x",
        "config": {},
        "environment": {},
    }
    return Record(**{**fields, "seconds": {}, **change}, seed=seed, rows=rows)


def _write(record, results):
    return write_record(record, results / record.experiment / f"{record.profile}-seed{record.seed}").parent


@pytest.fixture
def results(tmp_path):
    for seed, shift in enumerate((0, 0.001, 0.002)):
        _write(_record(seed, tuple(dataclasses.replace(r, top1_tflite=r.top1_tflite + shift) for r in ROWS)), tmp_path)
    return tmp_path


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_means_and_spreads(results):
    text = write_tables(results)
    rows = {row["variant"]: row for row in _rows(results / "results.csv")}
    assert list(rows) == [row.variant for row in ROWS]
    assert float(rows["float32"]["top1_tflite"]) == pytest.approx(99.5)
    assert float(rows["float32"]["top1_tflite_deviation"]) == pytest.approx(0.1)
    assert float(rows["sparse90-int8-qat"]["drop"]) == pytest.approx(0.1)
    assert float(rows["sparse90-int8-qat"]["drop_deviation"]) == pytest.approx(0)  # the seeds move together
    assert float(rows["sparse90-int8-qat"]["gzip_cut"]) == pytest.approx(100 * (1 - 43000 / 1726000), abs=1e-6)
    assert rows["float32"]["drop"] == ""
    assert "| float32 | 99.50 ± 0.10 |" in text


def test_variants_that_differ_in_numbers_stand_together(tmp_path):
    """However they came into the record, a few at a time."""
    names = ("float32", "sparse90-int8-qat", "l2-params72", "sparse5-int8-qat", "l2-params71-macs60", "l2-params28")
    _write(_record(0, tuple(dataclasses.replace(FLOAT, variant=name) for name in names)), tmp_path)
    write_tables(tmp_path)
    assert [row["variant"] for row in _rows(tmp_path / "results.csv")] == [
        *("float32", "sparse5-int8-qat", "sparse90-int8-qat", "l2-params28", "l2-params72", "l2-params71-macs60")
    ]


def test_variant_of_some_seeds_only_says_so(results):
    _write(_record(1, ROWS[:3]), results)
    text = write_tables(results)
    rows = {row["variant"]: row for row in _rows(results / "results.csv")}
    assert [rows[name]["seeds"] for name in ("float32", "sparse90-int8-qat")] == ["3", "2"]
    assert "| sparse90-int8-qat (2 of 3 seeds) |" in text and "| sparse50-int8-qat |" in text


def test_verdicts(results):
    text = write_tables(results)
    found = {(row["point"], row["metric"]): row for row in _rows(results / "comparison.csv")}
    assert found["LeNet-5 float", "top1_tflite"]["verdict"] == "target reached"
    # Both sparse rows fit; the better one on validation images stands there, not the better one on test images.
    sun = found["Sun & Ye 2020", "drop"]
    assert (sun["variant"], sun["ours"], sun["verdict"]) == (
        "sparse50-int8-qat", "0.04", "as published or better, target reached",
    )  # fmt: skip
    assert found["Sun & Ye 2020", "gzip_bytes"]["verdict"] == "as published or better, target reached"
    assert found["Sun & Ye 2020", "tflite_bytes"]["ours"] == "436400.0"
    assert found["Sun & Ye 2020", "tflite_bytes"]["verdict"] == ""
    deep = found["Deep Compression", "drop"]
    assert (deep["variant"], deep["verdict"]) == ("sparse90-int8-qat", "worse, target reached")
    assert (
        "| Deep Compression | sparse90-int8-qat | drop (pt) | -0.06 | ≤ 0.20 | 0.10 | worse, target reached |" in text
    )


def test_of_equal_variants_the_smallest_is_compared(tmp_path):
    _write(_record(rows=(FLOAT, *(dataclasses.replace(row, val_top1=0.99) for row in ROWS[1:]))), tmp_path)
    write_tables(tmp_path)
    found = {row["point"]: row["variant"] for row in _rows(tmp_path / "comparison.csv")}
    assert found["Sun & Ye 2020"] == "sparse98-int8-qat"


def test_where_all_were_measured_the_nearest_to_the_baseline_is_compared(tmp_path):
    def chosen(*divergences):
        rows = [dataclasses.replace(row, val_divergence=d) for row, d in zip(ROWS[1:], divergences, strict=True)]
        _write(_record(rows=(FLOAT, *rows)), tmp_path)
        text = write_tables(tmp_path)
        return {row["point"]: row["variant"] for row in _rows(tmp_path / "comparison.csv")}["Sun & Ye 2020"], text

    # Of those that reach what the point asks for otherwise, a file of 377,487 bytes.
    assert chosen(0.01, 0.3, 0.2, 0.4)[0] == "sparse90-int8-qat"
    variant, text = chosen(0.01, 0.3, None, 0.1)
    assert variant == "sparse50-int8-qat"  # by accuracy
    assert "| divergence, held-out (nats) |" in text and "| 0.3000 |" in text


def test_what_one_seed_measured_chooses_nothing(results):
    """Nor does it stand in a column of means over all seeds."""
    rows = [dataclasses.replace(row, val_divergence=i / 10) for i, row in enumerate(ROWS[1:], 1)]
    _write(_record(1, (FLOAT, *rows)), results)
    text = write_tables(results)
    found = {row["point"]: row["variant"] for row in _rows(results / "comparison.csv")}
    assert found["Sun & Ye 2020"] == "sparse50-int8-qat"  # by accuracy; sparse90 of seed 1 would be nearer
    assert "divergence, held-out" not in text


def test_times_are_those_of_the_first_seed(results):
    _write(_record(1, tuple(dataclasses.replace(row, latency_ms=9.0) for row in ROWS)), results)
    write_tables(results)
    rows = {row["variant"]: row["latency_ms"] for row in _rows(results / "results.csv")}
    assert rows == {"float32": "0.1", **dict.fromkeys([row.variant for row in ROWS[1:]], "")}


def test_missed_targets(tmp_path):
    rows = (
        dataclasses.replace(FLOAT, top1_tflite=0.9939),
        dataclasses.replace(ROWS[3], top1_tflite=0.99, gzip_bytes=44001),
    )
    _write(_record(rows=rows), tmp_path)
    write_tables(tmp_path)
    found = {(row["point"], row["metric"]): row["verdict"] for row in _rows(tmp_path / "comparison.csv")}
    assert found["LeNet-5 float", "top1_tflite"] == "target missed"
    assert found["Deep Compression", "gzip_bytes"] == "worse, target missed"
    assert found["Sun & Ye 2020", "drop"] == "as published or better, target missed"


def test_written_twice_the_same(results):
    def digests():
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(results.rglob("*.*")) if p.is_file()}

    write_weight_histograms({"fc": np.arange(9.0)}, {"fc": np.arange(9.0)}, results / "lenet" / "full-seed0")
    main(["plots", f"--results={results}"])
    main(["tables", f"--results={results}"])
    first = digests()
    main(["plots", f"--results={results}"])
    main(["tables", f"--results={results}"])
    assert digests() == first
    assert {"README.md", "results.csv", "comparison.csv", "full-accuracy-bytes.png"} <= set(first)
    assert {"full-sparsity-accuracy.png", "full-weights.png"} <= set(first)
    assert "full-routes.png" not in first  # no narrower networks
    assert "](lenet/full-accuracy-bytes.png)" in (results / "README.md").read_text()


def test_plots_of_pruned_networks(tmp_path):
    rows = (
        dataclasses.replace(FLOAT, top1_tflite=0.93),
        Row("l2-macs62-every", 0.925, 200000, 800000, 0.0001, 800000, 700000, val_top1=0.93, macs_cut_papers=0.5),
        Row("l2-macs70-first", 0.92, 150000, 600000, 0.004, 600000, 500000, val_top1=0.92, macs_cut_papers=0.7),
    )
    folder = _write(_record(rows=rows, experiment="resnet110", dataset="cifar10"), tmp_path)
    main(["plots", f"--results={tmp_path}"])
    drawn = {path.name for path in (tmp_path / "resnet110").glob("*.png")}
    # Of few zeros, as soft pruning leaves them, there is no plot.
    assert drawn == {"full-accuracy-bytes.png", "full-macs-accuracy.png"}
    plan = {"kept": {"conv1": [0, 2], "conv2": [1]}, "widths": {"conv1": 4, "conv2": 4}}
    (folder / "l2-macs62-every.plan.json").write_text(json.dumps(plan))
    write_filter_norms({"stage1": {"before": [0.5, 1.0, 1.5, 1.0], "l2-macs62-every": [1.5, 1.0]}}, folder)
    curves = {"conv1": {"0.5": 0.01, "0.9": 0.2}, "conv2": {"0.5": 0.0, "0.9": 0.003}}
    (folder.parent / "sensitivity-full-seed0.json").write_text(json.dumps({"divergence": curves}))
    main(["plots", f"--results={tmp_path}"])
    drawn = {path.name for path in (tmp_path / "resnet110").glob("*.png")} - drawn
    assert drawn == {"full-channels.png", "full-norms.png", "full-sensitivity.png"}
    write_filter_norms({"stage1": {"before": [0.5, 1.0, 1.5, 1.0]}}, folder)
    write_similarities({}, folder)
    main(["plots", f"--results={tmp_path}"])
    assert not (tmp_path / "resnet110" / "full-norms.png").exists()  # no network to draw
    (folder / "l2-macs62-every.plan.json").unlink()
    main(["plots", f"--results={tmp_path}"])
    assert not (tmp_path / "resnet110" / "full-channels.png").exists()  # no record draws it any more
    text = write_tables(tmp_path)
    # Among float variants only: the one at least 62 % smaller with the better held-out accuracy.
    assert "| Zhang et al. 2022 | l2-macs62-every | drop (pt) | 0.14 | ≤ 0.14 | 0.50 | worse, target missed |" in text


def test_accuracy_far_below_the_others_is_named_under_them(tmp_path):
    rows = (
        dataclasses.replace(FLOAT, top1_tflite=0.93),
        Row("l2-macs62-every", 0.925, 200000, 800000, 0.0, 800000, 700000, val_top1=0.93),
        Row("l2-macs62-first", 0.925, 200000, 800000, 0.0, 800000, 700000, val_top1=0.93),
        Row("l2-macs62-every-soft", 0.38, 200000, 800000, 0.0, 800000, 700000, val_top1=0.38),
        Row("l2-macs62-first-soft", 0.74, 200000, 800000, 0.0, 800000, 700000, val_top1=0.74),
    )
    _write(_record(rows=rows, experiment="resnet110", dataset="cifar10"), tmp_path)
    (summary,) = summarize(read_records(tmp_path))
    (axes,) = _accuracy_against_cut(summary, "macs_cut").axes
    assert axes.get_ylim()[0] > 90
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert list(heights) == ["38.0", "74.0"]
    assert axes.get_ylim()[0] < heights["38.0"] < heights["74.0"] < 92.5


def test_plots_of_parameters_cut_and_similar_filters(tmp_path, rng):
    rows = (
        Row("float32", 0.935, 14991946, 313463808, 0.0, 59900000, 55600000, val_top1=0.93),
        Row("diversity-a", 0.934, 3200000, 169000000, 0.0, 12800000, 11900000, val_top1=0.93),
        Row("diversity-b", 0.931, 1390000, 94000000, 0.0, 5600000, 5100000, val_top1=0.925),
    )
    folder = _write(_record(rows=rows, experiment="vgg16-cifar10", dataset="cifar10"), tmp_path)
    before = np.corrcoef(rng.normal(size=(100, 27)))
    write_similarities({"diversity-b, conv1": {"kept": 40, "before": before, "after": before[:40, :40]}}, folder)
    (stored,) = json.loads((folder / "similarities.json").read_text()).values()
    assert (len(stored["before"]), len(stored["after"]), stored["filters"]) == (64, 40, 100)
    assert stored["kept_shown"] == pytest.approx(0.4 * 64, abs=1)
    main(["plots", f"--results={tmp_path}"])
    names = ("accuracy-bytes", "macs-accuracy", "params-accuracy", "similarities")
    assert {path.stem for path in tmp_path.rglob("*.png")} == {f"full-{name}" for name in names}
    text = write_tables(tmp_path)
    assert "| Chen 2018 1 pt | diversity-b | drop (pt) | 1.00 | ≤ 0.50 | 0.40 | as published or better, target" in text


def test_both_routes_beside_each_other(tmp_path):
    rows = (
        Row("float32", 0.93, 3217226, 46354432, 0.0, 12880000, 11900000, val_top1=0.93, latency_ms=4.0),
        Row("int8-qat", 0.928, 3217226, 46354432, 0.0, 3400000, 2900000, val_top1=0.93, latency_ms=2.0),
        Row("sparse50-int8-qat", 0.926, 3217226, 46354432, 0.5, 3400000, 2000000, val_top1=0.93, latency_ms=2.0),
        Row("l2-params72-int8-qat", 0.924, 900800, 13000000, 0.0, 1000000, 900000, val_top1=0.92, latency_ms=0.8),
    )
    _write(_record(rows=rows, experiment="mobilenet", dataset="cifar10"), tmp_path)
    main(["plots", f"--results={tmp_path}"])
    assert (tmp_path / "mobilenet" / "full-routes.png").exists()
    text = write_tables(tmp_path)
    small = "| Smaller and faster | l2-params72-int8-qat |"
    assert f"{small} times faster than int8 |  | ≥ 2.00 | 2.50 | target reached |" in text
    assert f"{small} .tflite cut (%) |  | ≥ 92.0 | 92.2 | target reached |" in text


def test_recipes_are_held_against_their_targets(tmp_path):
    rows = (
        Row("float32", 0.9127, 271098, 40_551_104, 0.0, 1082992, 968133, val_top1=0.91, latency_ms=1.4),
        Row("fast-int8-qat", 0.9017, 118000, 14_600_000, 0.0, 131920, 116000, val_top1=0.91, latency_ms=0.4),
        Row("safe-int8-qat", 0.9117, 271098, 40_551_104, 0.0, 286576, 257241, val_top1=0.91, latency_ms=0.5),
    )
    _write(_record(rows=rows, experiment="recipes-resnet20", dataset="cifar10"), tmp_path)
    text = write_tables(tmp_path)
    fast = "| Recipe fast | fast-int8-qat |"
    assert f"{fast} drop (pt) |  | ≤ 1.00 | 1.10 | target missed |" in text
    assert f"{fast} times faster than int8 |  | ≥ 1.50 | 1.25 | target missed |" in text


def test_sizes_without_accuracy(tmp_path):
    rows = (
        Row("float32", None, 4231976, 568740352, 0.0, 16900000, 15600000, latency_ms=20.0),
        Row("sparse50-int8-qat", None, 4231976, 568740352, 0.5, 4300000, 2900000, latency_ms=9.0),
    )
    _write(_record(rows=rows, experiment="mobilenet-sizes", dataset="none"), tmp_path)
    main(["plots", f"--results={tmp_path}"])
    assert not list(tmp_path.rglob("*.png"))
    text = write_tables(tmp_path)
    assert "top-1" not in text.split("profile full.")[-1].split("| point")[0]
    assert "| Sun & Ye 2020 | sparse50-int8-qat | gzip -9 (B) | 3,100,000 | ≤ 3,100,000 | 2,900,000 |" in text


def test_smoke_and_other_data_never_mix(results):
    before = write_tables(results)
    comparison = (results / "comparison.csv").read_text()
    _write(_record(profile="smoke"), results)
    assert write_tables(results) == before
    _write(_record(3, experiment="lenet-digits", dataset="digits"), results)
    _write(_record(3, dataset="digits"), results)  # digits under MNIST's name
    text = write_tables(results)
    assert "## lenet-digits, profile full" in text
    assert (results / "comparison.csv").read_text() == comparison
    assert "| float32 | 99.50 ± 0.10 |" in text


def test_different_configurations_are_told(results):
    assert "different configurations" not in write_tables(results)
    for seed, epochs in enumerate((2, 2, 3)):
        _write(_record(seed, config={"epochs": epochs}), results)
    assert "**The seeds ran with different configurations.**" in write_tables(results)
    # What old records do not name is no difference.
    for seed, config in enumerate(({"epochs": 2}, {"epochs": 2, "cutout": 8}, {})):
        _write(_record(seed, config=config), results)
    assert "different configurations" not in write_tables(results)


def test_no_records(tmp_path, capsys):
    _write(_record(profile="smoke"), tmp_path)
    for what in ("tables", "plots"):
        with pytest.raises(SystemExit, match="no records of profile quick or full"):
            main([what, f"--results={tmp_path}"])
    assert [p.name for p in tmp_path.iterdir()] == ["lenet"]


def test_published_numbers_have_sources():
    points = published_points()
    experiments = {point.experiment for point in points}
    assert {"lenet", "mobilenet", "resnet110", "vgg16-cifar10", "vgg16-cifar100"} <= experiments
    for point in points:
        assert all(figure.metric in METRICS and (figure.published is None or figure.source) for figure in point.figures)


def test_every_published_point_names_variants_that_there_are():
    """Those in the results, or those of an experiment that has none yet."""
    records = read_records(Path(__file__).parents[2] / "results")
    names = {row.variant for record in records for row in record.rows}
    names |= {"diversity-b", "diversity-b-int8-qat", "diversity-beyond", "l1-b", "redundancy-b", "geometric_median-b"}
    names |= set(resnet.BEYOND)
    for point in published_points():
        assert any(re.fullmatch(point.variants, name) for name in names), (point.name, point.variants)


def test_readme_gets_the_comparisons_of_full_runs_between_its_marks(results):
    readme = results / "TOP.md"
    readme.write_text("above\n<!-- results -->\nold\n<!-- /results -->\nbelow\n")
    write_tables(results, readme)
    text = readme.read_text()
    assert text.startswith("above\n<!-- results -->\n| experiment |") and text.endswith("<!-- /results -->\nbelow\n")
    assert "old" not in text and "Sun & Ye 2020" in text
    write_tables(results, readme)
    assert readme.read_text() == text


def test_readme_without_marks_is_left_alone(results):
    readme = results / "TOP.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="must have one line <!-- results -->"):
        write_tables(results, readme)
    with pytest.raises(SystemExit, match=r"missing\.md"):
        main(["tables", f"--results={results}", f"--readme={results / 'missing.md'}"])
    assert readme.read_text() == "nothing here\n" and not (results / "results.csv").exists()
