"""The survey's and the distillation experiment end to end, in seconds, on digits."""

import pytest

from tfcompress import evaluate_tflite
from tfcompress.reporting import read_records


@pytest.fixture(scope="module")
def rows(tmp_path_factory, run_experiment, digits):
    """{variant: row} of the survey, whose files were measured again."""
    folder = tmp_path_factory.mktemp("survey")
    done = run_experiment("survey", folder, "--profile=smoke")
    assert done.returncode == 0, done.stderr
    (record,) = read_records(folder / "results")
    assert (record.experiment, record.dataset) == ("survey-digits", "digits")
    for row in record.rows:
        if row.tflite:
            file = folder / "results" / "survey-digits" / "smoke-seed0" / row.tflite
            assert evaluate_tflite(file, digits.x_test, digits.y_test) == pytest.approx(row.top1_tflite), row.variant
    return {row.variant: row for row in record.rows}


def test_every_family_has_an_int8_file(rows):
    assert [name for name, row in rows.items() if row.tflite] == list(rows)[1:]
    assert list(rows) == [
        "float32",
        "int8-qat",
        "lowrank-int8-qat",
        "sparse92-int8-qat",
        "sparse92-shared4-int8-qat",
        "l1-params92-int8-qat",
        "binary-int8",
        "thin-int8-qat",
        "thin-distilled-int8-qat",
    ]


def test_each_family_cuts_what_it_says(rows):
    thin, low_rank = rows["l1-params92-int8-qat"], rows["lowrank-int8-qat"]
    # fc1 has 800 x 22 and 22 x 500 weights instead of 800 x 500.
    assert low_rank.params == 431_080 - 400_000 + 28_600 and low_rank.macs == 2_293_000 - 400_000 + 28_600
    assert 0.92 <= 1 - thin.params / 431_080 <= 0.93
    for name, row in rows.items():
        whole = (rows["float32"].params, rows["float32"].macs)
        expected = (thin.params, thin.macs) if name.startswith(("thin", "l1")) else whole
        assert name == "lowrank-int8-qat" or (row.params, row.macs) == expected, name
        assert row.sparsity == pytest.approx(0.92 if name.startswith("sparse92") else 0, abs=0.01), name


def test_shared_and_binary_weights_compress(rows):
    bytes_of = {name: row.gzip_bytes for name, row in rows.items()}
    assert bytes_of["sparse92-shared4-int8-qat"] < bytes_of["sparse92-int8-qat"] < bytes_of["int8-qat"] / 4
    # Of a file of int8, binary weights leave about an eighth and what stays float.
    assert bytes_of["binary-int8"] < bytes_of["int8-qat"] / 3


def test_distillation_trains_the_same_student_twice(tmp_path, run_experiment):
    done = run_experiment("distillation", tmp_path, "--profile=smoke")
    assert done.returncode == 0, done.stderr
    (record,) = read_records(tmp_path / "results")
    teacher, *students = record.rows
    assert [row.variant for row in record.rows] == ["float32", "student", "student-distilled"]
    assert teacher.params == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 12_010
    assert {row.params for row in students} == {784 * 800 + 800 + 800 * 800 + 800 + 8_010}
    assert students[0].top1 != students[1].top1
