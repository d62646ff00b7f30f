"""Records: what is written is read again, and what is wrong is named."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from tfcompress.reporting import Record, Row, environment, read_records, write_record, write_weight_histograms

ROW = Row(
    variant="float32",
    top1=0.99,
    top1_tflite=0.9901,
    params=431080,
    macs=2293000,
    sparsity=0.0,
    tflite_bytes=8,
    gzip_bytes=6,
    tflite="float32.tflite",
    latency_ms=0.1,
    val_top1=0.98,
)
RECORD = Record(
    experiment="lenet",
    dataset="mnist",
    profile="full",
    seed=1,
    command="python -m experiments.lenet",
    config={"epochs": 3},
    environment={"cpu": "x"},
    seconds={"float32": 1.5},
    rows=(ROW,),
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "lenet" / "full-seed1"
    folder.mkdir(parents=True)
    (folder / "float32.tflite").write_bytes(b"12345678")
    return folder


def test_round_trip(folder, tmp_path):
    path = write_record(RECORD, folder)
    assert path == folder / "record.json"
    assert read_records(tmp_path) == [RECORD]
    assert sorted(p.name for p in folder.iterdir()) == ["float32.tflite", "record.json"]
    assert json.loads(path.read_text())["rows"][0]["gzip_bytes"] == 6


def test_order_is_by_experiment_profile_seed(tmp_path):
    row = dataclasses.replace(ROW, tflite=None)
    for experiment, profile, seed in [
        ("vgg16", "full", 0),
        ("lenet", "full", 10),
        ("lenet", "full", 2),
        ("lenet", "quick", 0),
    ]:
        record = dataclasses.replace(RECORD, experiment=experiment, profile=profile, seed=seed, rows=(row,))
        write_record(record, tmp_path / experiment / f"{profile}-seed{seed}")
    found = [(r.experiment, r.profile, r.seed) for r in read_records(tmp_path)]
    assert found == [("lenet", "quick", 0), ("lenet", "full", 2), ("lenet", "full", 10), ("vgg16", "full", 0)]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"experiment": "lenet-digits"},
        {"profile": "quick"},
        {"config": {"x": float("nan")}},
        {"rows": (dataclasses.replace(ROW, tflite_bytes=9),)},
        {"rows": (dataclasses.replace(ROW, tflite="none.tflite"),)},
    ],
)
def test_unfit_record_is_not_written(folder, change):
    with pytest.raises(ValueError):
        write_record(dataclasses.replace(RECORD, **change), folder)
    assert [p.name for p in folder.iterdir()] == ["float32.tflite"]


@pytest.mark.parametrize(
    "change",
    [
        {"top1_tflite": 99.0},
        {"top1": float("nan")},
        {"sparsity": -0.1},
        {"params": 1.5},
        {"gzip_bytes": -1},
        {"latency_ms": 0.0},
        {"val_divergence": -0.1},
    ],
)
def test_bad_rows(change):
    with pytest.raises(ValueError, match=f"float32.*{next(iter(change))}"):
        dataclasses.replace(ROW, **change)


@pytest.mark.parametrize("change", [{"profile": "long"}, {"rows": ()}, {"rows": (ROW, ROW)}])
def test_bad_records(change):
    with pytest.raises(ValueError, match="Received"):
        dataclasses.replace(RECORD, **change)


def _truncate(text):
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"macs"', '"max"'),
        lambda text: text.replace('"seed": 1', '"seed": 2'),
        lambda text: text.replace("0.9901", "99.01"),
    ],
)
def test_corrupt_record_is_named(folder, tmp_path, damage):
    path = write_record(RECORD, folder)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"lenet/full-seed1/record\.json is not a valid record"):
        read_records(tmp_path)


def test_environment():
    found = environment(threads=2)
    assert found["threads"] == 2
    assert found["numpy"] == np.__version__
    assert {
        "python",
        "keras",
        "tensorflow",
        "tf_keras",
        "tensorflow-model-optimization",
        "ai-edge-litert",
        "cpu",
    } <= set(found)
    assert not any("/" in str(value) for value in found.values())
    assert environment()["threads"] >= 1


def test_histograms_count_every_weight(tmp_path):
    before = np.random.default_rng(0).normal(size=(20, 30))
    after = np.where(np.abs(before) < 1, 0, before)
    stored = json.loads(write_weight_histograms({"fc": before, "gone": before}, {"fc": after}, tmp_path).read_text())
    assert list(stored) == ["fc"]
    assert sum(stored["fc"]["before"]) == sum(stored["fc"]["after"]) == 600
    assert stored["fc"]["after"][40] == np.sum(after == 0)


def test_reporting_needs_neither_keras_nor_tensorflow():
    code = "import sys, tfcompress.reporting.__main__; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
