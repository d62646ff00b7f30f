"""The recipes experiment's flags."""


def test_unknown_model_is_named(tmp_path, run_experiment):
    run = run_experiment("recipes", tmp_path, "--profile=smoke", "--model=resnet50")
    assert run.returncode == 1
    assert "model must be one of mnist_convnet, resnet20, mobilenet_v2" in run.stderr
    assert "Received: 'resnet50'" in run.stderr
