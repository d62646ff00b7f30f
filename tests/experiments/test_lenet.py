"""The LeNet experiment end to end, in seconds, on digits."""

import json

import pytest

from experiments.lenet import PROFILES
from experiments.runner import Run, load_split
from tfcompress import evaluate_tflite
from tfcompress.reporting import read_records


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, run_experiment):
    folder = tmp_path_factory.mktemp("smoke")
    done = run_experiment("lenet", folder, "--profile=smoke")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_record_matches_its_files(smoke, digits):
    folder, _ = smoke
    (record,) = read_records(folder / "results")
    assert (record.experiment, record.dataset, record.profile) == ("lenet-digits", "digits", "smoke")
    rows = {row.variant: row for row in record.rows}
    small = ["small-16KiB-int8-qat", "small-10KiB-int8-qat"]
    assert list(rows) == ["float32", "int8-ptq", "int8-qat", "sparse50-int8-qat", "sparse90-int8-qat", *small]
    assert rows[small[0]].tflite_bytes <= 16_384 and rows[small[1]].tflite_bytes <= 10_240
    for name, row in rows.items():
        assert (row.params == 431_080 and row.macs == 2_293_000) or name in small
        if row.tflite:
            file = folder / "results" / "lenet-digits" / "smoke-seed0" / row.tflite
            assert evaluate_tflite(file, digits.x_test, digits.y_test) == pytest.approx(row.top1_tflite), name
    assert rows["sparse90-int8-qat"].sparsity == pytest.approx(0.9, abs=0.01)
    assert rows["sparse90-int8-qat"].gzip_bytes < rows["sparse50-int8-qat"].gzip_bytes < rows["int8-qat"].gzip_bytes
    assert sum(row.selected for row in record.rows) == 1


def test_help_lists_the_flags(tmp_path, run_experiment):
    run = run_experiment("lenet", tmp_path, "--help")
    assert "--sparsities: fractions of the weights to remove" in run.stdout


def test_wrong_fractions_are_refused(tmp_path, run_experiment):
    for value, message in (("0.5,x", "could not convert string to float: 'x'"), ("50,90", "Received: (50.0, 90.0)")):
        run = run_experiment("lenet", tmp_path, "--profile=smoke", f"--sparsities={value}")
        assert run.returncode == 1 and message in run.stderr and "Traceback" not in run.stderr


def test_same_command_skips_what_is_done(smoke, run_experiment):
    folder, first = smoke
    before = json.loads((folder / "results/lenet-digits/smoke-seed0/record.json").read_text())
    again = run_experiment("lenet", folder, "--profile=smoke")
    after = json.loads((folder / "results/lenet-digits/smoke-seed0/record.json").read_text())
    assert "epoch" in first.stdout and "epoch" not in again.stdout
    assert before["seconds"] == after["seconds"]
    for a, b in zip(before["rows"], after["rows"]):
        assert a["top1_tflite"] == b["top1_tflite"] and a["gzip_bytes"] == b["gzip_bytes"]


def test_without_mnist_digits_take_its_place_loudly(tmp_path, monkeypatch, capsys):
    """An npz that is damaged stands for a data set that cannot be had; a machine of the tests may be online."""
    (tmp_path / "mnist.npz").write_bytes(b"cut short")
    monkeypatch.setenv("TFCOMPRESS_DATA_DIR", str(tmp_path))
    task = Run("lenet", "smoke", 0, PROFILES["smoke"], "", tmp_path, tmp_path)
    name, split = load_split(task, "mnist", held_out=5000, train_images=100)
    assert name == "digits" and len(split.train[0]) == 100 and len(split.validation[0]) < 200
    assert "RUNNING ON scikit-learn's digits INSTEAD" in capsys.readouterr().err
    (notice,) = task.notices
    assert notice.endswith("not comparable with the published numbers.")


def test_no_fewer_images_are_held_out_than_a_flag_says(tmp_path):
    task = Run("lenet", "smoke", 0, PROFILES["smoke"], "", tmp_path, tmp_path, ("held_out",))
    _, split = load_split(task, "digits", held_out=9)
    assert len(split.validation[0]) == 9
    with pytest.raises(SystemExit, match=r"held_out must be at most \d+, a tenth of the images\. Received: 999"):
        load_split(task, "digits", held_out=999)


@pytest.mark.slow
def test_without_mnist_it_says_so_and_touches_no_mnist_record(tmp_path, run_experiment):
    (tmp_path / "mnist.npz").write_bytes(b"cut short")
    done = run_experiment(
        "lenet",
        tmp_path,
        "--profile=smoke",
        "--dataset=mnist",
        "--sparsities=0.5",
        "--sparse_epochs=1",
        "--epochs=1",
        TFCOMPRESS_DATA_DIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RUNNING ON scikit-learn's digits INSTEAD") == 2
    assert done.stderr.rstrip().endswith("not comparable with the published numbers.")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["lenet-digits"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--profile=fast", "smoke"),
        ("--epochs=many", "epochs"),
        ("--dataset=imagenet", "there are mnist"),
        ("--sparsities=0.9,0.5", "must increase"),
        ("--sparsities=0.5,0.5", "must increase"),
        ("--sparsities=", "must be fractions"),
        ("--small_qat_epochs=0", "small_qat_epochs must be at least 1. Received: 0"),
    ],
)
def test_bad_flags_are_named(run_experiment, tmp_path, flag, message):
    done = run_experiment("lenet", tmp_path, "--profile=smoke", flag)
    assert done.returncode != 0 and message in done.stdout + done.stderr
