"""A run that is stopped leaves a record of what it has measured, and a finished one is not measured twice."""

import dataclasses
from types import SimpleNamespace

from experiments import measure
from experiments.mobilenet import PROFILES
from experiments.runner import Run
from tfcompress.reporting import Row


def test_record_so_far_is_written_when_the_results_lack_a_variant(tmp_path, monkeypatch):
    written = []
    task = Run("mobilenet", "smoke", 0, PROFILES["smoke"], "", tmp_path / "runs", tmp_path / "results")

    def record(task, dataset, split, variants, select, top5):
        written.append([variant.name for variant in variants])
        sizes = {"params": 1, "macs": 1, "sparsity": 0.0, "tflite_bytes": 1, "gzip_bytes": 1}
        rows = [Row(variant.name, top1_tflite=None, **sizes) for variant in variants]
        measure.write(task, dataset, rows)

    monkeypatch.setattr(measure, "record", record)

    def so_far(*names, task=task):
        measure.record_so_far(task, "digits", None, [SimpleNamespace(name=name) for name in names], None)

    so_far("float32")
    so_far("float32", "int8-qat")
    so_far("float32")
    assert written == [["float32"], ["float32", "int8-qat"]]
    longer = dataclasses.replace(task, config=dataclasses.replace(task.config, finetune_epochs=2))
    so_far("float32", task=longer)
    so_far("float32", task=dataclasses.replace(longer, seed=1))
    assert written[2:] == [["float32"], ["float32"]]
