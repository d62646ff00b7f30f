"""The ResNet experiment: its accounting to the digit, and all of it in seconds on digits."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import tfcompress as tfc
from experiments import filters
from experiments.resnet import PROFILES, Config, cut, macs_cut_papers, parse, select, streams
from experiments.runner import Run
from tfcompress.models import resnet
from tfcompress.reporting import Row, read_records

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize(
    ("rate", "papers", "first", "every"), [(0.5, 62.83, 49.91, 74.96), (0.625, 74.53, 62.39, 85.90)]
)
def test_resnet110_macs_as_papers_count_and_as_they_are(rate, papers, first, every):
    model = resnet(110)
    narrow = tfc.plan_pruning(model, "l2", ratio=rate, skip=streams(model))
    assert 100 * narrow.macs_reduction == pytest.approx(first, abs=0.01)
    assert 100 * macs_cut_papers(model, narrow) == pytest.approx(papers, abs=0.005)
    whole = tfc.plan_pruning(model, "l2", ratio=rate)
    assert 100 * whole.macs_reduction == pytest.approx(every, abs=0.01)
    assert macs_cut_papers(model, whole) == pytest.approx(macs_cut_papers(model, narrow))


def test_names_of_variants():
    pruning = parse("distribution_fit_b-macs62-first-nodistill")
    assert (pruning.criterion.method, pruning.macs_reduction) == ("wasserstein", 0.62)
    assert (pruning.widths, pruning.options) == ("first", {"nodistill"})
    plain = parse("l2-macs70-every")
    assert (plain.criterion.name, plain.widths, plain.options) == ("l2", "every", frozenset())
    every = ("nodistill", "soft", "cutout", "cutmix", "long")
    assert parse("-".join(("l2-macs62-every", *every))).options == set(every)


def test_distribution_fitting_keeps_filters_that_were_just_zeroed(rng):
    """Why it does not prune softly: half of what it kept goes in the next epoch; by norm, the same filters stay."""
    filters = rng.normal(size=(16, 27))
    for criterion, same in (("l2", 8), ("distribution_fit", 4)):
        kept = tfc.criteria.get(criterion).keep(filters, 8)
        silenced = np.where(np.isin(np.arange(16), kept)[:, None], filters, 0)
        assert len(np.intersect1d(kept, tfc.criteria.get(criterion).keep(silenced, 8))) == same


def test_selected_is_the_best_of_those_cut_enough():
    def row(name, val_top1, macs, papers=0.5):
        return Row(name, 0.9, 1, macs, 0.0, 1, 1, val_top1=val_top1, macs_cut_papers=papers)

    unpruned, int8 = row("float32", 0.93, 100, None), row("l2-macs54-every-int8-qat", 0.93, 46, None)
    pruned = [row("l2-macs40-first", 0.92, 60), row("l2-macs54-first", 0.90, 46), row("l2-macs70-every", 0.91, 30)]
    assert select([unpruned, *pruned, int8], 54) is pruned[2]
    assert select([unpruned, *pruned, int8], 40) is pruned[0]
    assert select([unpruned, pruned[0], int8], 54) is None
    # Where every one of them was measured against the baseline, the nearest is the best.
    near = dataclasses.replace(pruned[1], val_divergence=0.1)
    assert select([unpruned, near, dataclasses.replace(pruned[2], val_divergence=0.2)], 54) is near
    assert select([unpruned, near, pruned[2]], 54) is pruned[2]


def test_records_in_the_results_select_by_this_rule():
    records = [r for r in read_records(RESULTS) if re.fullmatch(r"resnet\d+", r.experiment)]
    assert records
    for record in records:
        selected = [row.variant for row in record.rows if row.selected]
        best = select(record.rows, cut(record.experiment))
        assert selected == ([best.variant] if best else [])
    assert any(row.selected for record in records for row in record.rows)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, run_experiment):
    folder = tmp_path_factory.mktemp("smoke")
    done = run_experiment("resnet", folder, "--profile=smoke")
    assert done.returncode == 0, done.stderr
    return folder


def test_all_stages(smoke):
    tmp_path = smoke
    name = PROFILES["smoke"].variants[0]
    (record,) = read_records(tmp_path / "results")
    assert (record.experiment, record.dataset) == ("resnet8-digits", "digits")
    assert record.config["qat_epochs"] == 1 and "variants" not in record.config  # they may differ between seeds
    rows = {row.variant: row for row in record.rows}
    assert list(rows) == ["float32", name, "int8-qat", f"{name}-int8-qat"]
    assert 0.50 <= 1 - rows[name].macs / rows["float32"].macs <= 0.51
    assert rows[name].selected and rows[name].macs_cut_papers < 0.5
    assert rows["int8-qat"].tflite_bytes < rows["float32"].tflite_bytes / 3
    assert rows["float32"].val_divergence is None and all(row.val_divergence > 0 for row in record.rows[1:])
    folder = tmp_path / "results" / "resnet8-digits" / "smoke-seed0"
    plan = tfc.PruningPlan.from_json((folder / f"{name}.plan.json").read_text())
    assert plan.after.macs == rows[name].macs
    (stage, *_) = json.loads((folder / "filter_norms.json").read_text()).values()
    assert np.mean(stage["before"]) == pytest.approx(1, abs=1e-4) and set(stage[name]) < set(stage["before"])


def test_the_selected_network_is_taken_from_the_results(smoke, tmp_path):
    name, results = PROFILES["smoke"].variants[0], shutil.copytree(smoke / "results", tmp_path / "results")
    (record,) = read_records(results)

    def taken(variant=name, **options):
        config = dataclasses.replace(PROFILES["smoke"], **{"from_results": True, **options})
        task = Run(record.experiment, "smoke", 0, config, "", tmp_path, results, baseline=record.config["baseline"])
        return filters.from_results(task, variant)

    (path,) = results.rglob("*.keras")
    model, plan = taken()
    assert path.stem == name and tfc.profile(model).params == plan.after.params
    assert taken(from_results=False) is taken("l2-macs50-first") is taken(qat_epochs=9) is None
    plan_path = path.with_name(f"{name}.plan.json")
    other = tfc.plan_pruning(resnet(8), "l2", macs_reduction=0.3)
    for text, message in ((other.to_json(), "is not the network of"), ("{", "cannot be read, remove both")):
        plan_path.write_text(text)
        with pytest.raises(SystemExit, match=message):
            taken()


@pytest.mark.slow
def test_quantized_on_another_machine(smoke, run_experiment, tmp_path):
    """Where no run directory is left."""
    name = PROFILES["smoke"].variants[0]
    shutil.copytree(smoke / "results", tmp_path / "results")
    flags = ("--profile=smoke", "--from_results", f"--variants={name}", f"--quantized={name}")
    done = run_experiment("resnet", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == 1  # with quantization only
    (before,), (record,) = (read_records(place / "results") for place in (smoke, tmp_path))
    assert [row.top1_tflite for row in record.rows[:2]] == [row.top1_tflite for row in before.rows[:2]]
    assert record.seconds.keys() == before.seconds.keys() and "--from_results" in record.command


@pytest.mark.slow
def test_networks_trained_side_by_side_are_those_trained_in_turn(smoke, run_experiment, tmp_path):
    first = PROFILES["smoke"].variants[0]
    second = "l2-macs30-sensitive"
    shutil.copytree(smoke / "results", tmp_path / "results")
    flags = ("--profile=smoke", f"--variants={second},{first}", f"--quantized={second}", "--jobs=2")
    done = run_experiment("resnet", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert f"{first}: epoch 1/1" in done.stdout and f"{second}-int8-qat" in done.stdout
    assert "\nepoch" not in done.stdout, "the first process has trained something itself"
    (before,), (record,) = (read_records(place / "results") for place in (smoke, tmp_path))
    rows = {row.variant: row for row in record.rows}
    assert {first, second, f"{second}-int8-qat"} <= rows.keys()
    (alone,) = [row for row in before.rows if row.variant == first]
    assert rows[first].top1_tflite == pytest.approx(alone.top1_tflite, abs=0.5)
    assert rows[first].params == alone.params and not re.search("jobs|baseline", record.command)


@pytest.mark.slow
def test_one_more_variant_is_added_to_the_record(smoke, run_experiment):
    """The baseline in the results is where it starts."""
    (record,) = read_records(smoke / "results")
    rows = {row.variant: row for row in record.rows}
    variant = "l2-macs50-first-nodistill-long"
    more = run_experiment("resnet", smoke, "--profile=smoke", f"--variants={variant}", "--quantized=float32")
    assert more.returncode == 0, more.stderr
    assert "baseline-smoke-seed0.npz" in more.stdout and more.stdout.count("epoch 3/3") == 1
    other = run_experiment("resnet", smoke, "--profile=smoke", "--baseline_epochs=3")
    assert other.returncode == 1 and "of another training: epochs 2, now 3" in other.stderr
    assert "To start from it: --baseline_epochs=2" in other.stderr
    (extended,) = read_records(smoke / "results")
    assert [row.variant for row in extended.rows] == [*rows, variant]
    assert [row.top1_tflite for row in extended.rows[:-1]] == [row.top1_tflite for row in record.rows]
    (stage, *_) = json.loads((smoke / "results/resnet8-digits/smoke-seed0/filter_norms.json").read_text()).values()
    assert list(stage) == ["before", PROFILES["smoke"].variants[0]]  # drawn still, and none that labels alone tuned


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "vgg16"}, "model must be resnet20"),
        ({"variants": ("l2-62",)}, "criterion-macs<percent>-every"),
        ({"variants": ("l2-macs00-every",)}, "from 01 to 99"),
        ({"variants": ("l2-macs62-long",)}, "-long for three times"),
        ({"variants": ("l2-macs62-every-iterative",)}, "criterion-macs<percent>-every"),
        ({"variants": ("distribution_fit_b-macs62-every-soft",)}, "keeps filters that soft pruning has just zeroed"),
        ({"quantized": ("l3-macs62-every",)}, "geometric_median"),
        ({"qat_epochs": 0}, "qat_epochs must be at least 1. Received: 0"),
        ({"precision": "float16"}, "precision must be float32 or mixed_bfloat16. Received: 'float16'"),
        ({"quantized": ("l2-macs54-every",), "variants": ("random-macs54-every",)}, "among the variants, random"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"model": "resnet20", **fields})
