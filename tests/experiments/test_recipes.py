"""The recipes experiment's flags and its record."""

import json


def test_unknown_model_is_named(tmp_path, run_experiment):
    run = run_experiment("recipes", tmp_path, "--profile=smoke", "--model=resnet50")
    assert run.returncode == 1
    assert "model must be one of mnist_convnet, resnet20, mobilenet_v2" in run.stderr
    assert "Received: 'resnet50'" in run.stderr


def test_resnet20_is_not_trained_here(tmp_path, run_experiment):
    run = run_experiment("recipes", tmp_path, "--profile=smoke", "--model=resnet20")
    assert run.returncode == 1
    assert "Received: dataset='digits', train_images=512" in run.stderr
    run = run_experiment("recipes", tmp_path, "--profile=full", "--model=resnet20", "--seed=1")
    assert run.returncode == 1 and "do not depend on the seed. Received: 1" in run.stderr
    run = run_experiment("recipes", tmp_path, "--profile=full", "--model=resnet20", "--epochs=3")
    assert run.returncode == 1 and "epochs would do nothing. Received: 3" in run.stderr
    run = run_experiment("recipes", tmp_path, "--profile=full", "--recipes=safe,tiny")
    assert run.returncode == 1
    assert "recipes must be among small, fast, safe. Received: safe, tiny" in run.stderr


def test_recipes_are_added_to_the_record(tmp_path, run_experiment):
    for recipe in ("safe", "small"):
        run = run_experiment("recipes", tmp_path, "--profile=smoke", f"--recipes={recipe}")
        assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("results/*/*/record.json")
    record = json.loads(path.read_text())
    assert [row["variant"] for row in record["rows"]] == ["float32", "safe-int8-qat", "small-int8-qat"]
    assert record["command"] == "python -m experiments.recipes --profile=smoke --seed=0 --recipes=safe,small"
