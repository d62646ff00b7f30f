"""The guides: every block of code in them runs, in order, as a reader would run it."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from tfcompress.cli import main
from tfcompress.compression.recipe import OPTIONS, SHIPPED, load_recipe
from tfcompress.criteria import REGISTRY
from tfcompress.datasets import SCALINGS
from tfcompress.surgery import rules

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"`([\w./-]+\.(?:csv|html|json|keras|npz|png|tflite|txt|yaml))`")
OF_ONE_COMPRESSION = ["labels.txt", "model.json", "model.keras", "model.tflite", "plan.json", "report.html", "steps"]
LANGUAGES = ("bash", "console", "python", "text", "yaml")


@pytest.fixture(scope="module")
def readers_files(digits, tmp_path_factory):
    """A folder with what the reader has: a trained model.keras, images.npz, and a folder of images per class."""
    folder = tmp_path_factory.mktemp("reader")
    trained_model(digits).save(folder / "model.keras")
    np.savez_compressed(
        folder / "images.npz",
        x_train=digits.x_train[:400],
        y_train=digits.y_train[:400],
        x_test=digits.x_test[:200],
        y_test=digits.y_test[:200],
    )
    for digit in range(10):
        (folder / "photos" / f"digit{digit}").mkdir(parents=True)
        for number, image in enumerate(digits.x_train[digits.y_train == digit][:3]):
            Image.fromarray(image[:, :, 0]).save(folder / "photos" / f"digit{digit}" / f"{number}.png")
    return folder


def trained_model(digits):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(16, 3, strides=2, activation="relu", name="conv1"),
            layers.Conv2D(32, 3, strides=2, use_bias=False, name="conv2"),
            layers.BatchNormalization(momentum=0.9, name="norm2"),
            layers.ReLU(name="relu2"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits",
    )
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(digits.x_train / np.float32(255), digits.y_train, epochs=6, batch_size=64, verbose=0)
    return model


@pytest.fixture
def desk(readers_files, tmp_path, monkeypatch):
    """The reader's files in a folder of their own, which is the current one; what a guide registers is forgotten."""
    folder = tmp_path / "desk"
    shutil.copytree(readers_files, folder)
    monkeypatch.chdir(folder)
    with mock.patch.dict(REGISTRY), mock.patch.dict(rules._RULES):
        yield folder


@pytest.mark.parametrize("name", ["guide.md", "extending.md"])
def test_every_block_runs_and_writes_the_files_it_speaks_of(name, desk, capsys):
    text = (DOCS / name).read_text()
    namespace = {"__name__": "reader"}
    for match in BLOCK.finditer(text):
        language, code = match.groups()
        line = text[: match.start(2)].count("\n")
        where = f"{DOCS / name}, line {line + 1}"
        if language == "python":
            exec(compile("\n" * line + code, DOCS / name, "exec"), namespace)
        elif language == "bash":
            run_shell(code, where)
        elif language == "console":
            run_console(code, where, capsys)
        elif language == "yaml":
            write_file(code, where)
        else:
            assert language == "text", f"{where}: a block of {language}; there are {', '.join(LANGUAGES)}"
    missing = [file for file in FILE_NAME.findall(text) if not any(path.match(file) for path in desk.rglob("*"))]
    assert not missing
    if name == "guide.md":
        assert sorted(path.name for path in (desk / "out").iterdir()) == OF_ONE_COMPRESSION
        assert sorted(path.name for path in (desk / "compressed").iterdir()) == OF_ONE_COMPRESSION


def run_shell(code, where):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}{done.stderr}"


def run_console(code, where, capsys):
    """`$ tfcompress ...` and, if given, the output: within this process, as TensorFlow takes seconds to load."""
    command, output = code.split("\n", 1)
    prompt, program, *arguments = shlex.split(command)
    assert (prompt, program) == ("$", "tfcompress"), where
    capsys.readouterr()
    assert main(arguments) == 0, f"{where}: {capsys.readouterr().err}"
    printed = capsys.readouterr().out
    assert not output or comparable(printed) == comparable(output), where


def comparable(output):
    """Lines without widths and without percentages: accuracies differ from one machine to the next."""
    lines = re.sub(r"\d+\.\d+%", "%", output).strip().splitlines()
    return [" ".join(re.sub("-{2,}", "--", line).split()) for line in lines]


def write_file(code, where):
    first = code.splitlines()[0]
    assert first.startswith("# file: "), f"{where}: a YAML block begins with '# file: NAME'"
    Path(first.removeprefix("# file: ")).write_text(code)


def test_a_failing_block_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="exit code 3"):
        run_shell("(exit 3)\ntrue", "here")
    with pytest.raises(AssertionError, match="no such file"):
        run_console("$ tfcompress profile nowhere.keras\n", "here", capsys)


def test_guide_names_every_command_option_recipe_and_scaling(capsys):
    text = (DOCS / "guide.md").read_text()
    with contextlib.suppress(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) > 5 and [name for name in commands if f"tfcompress {name} " not in text] == []
    for kind, options in OPTIONS.items():
        section = text.split(f"**`{kind}`**")[1].split("**`")[0] if f"**`{kind}`**" in text else ""
        own = [name for name in options if kind == "prune" or name not in OPTIONS["finetune"]]
        assert [name for name in own if f"`{name}`" not in section] == [], kind
    assert [name for name in OPTIONS["finetune"] if f"| `{name}` |" not in text] == []
    assert [name for name in (*SHIPPED, *SCALINGS) if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_guide_gives_the_numbers_of_the_shipped_recipes(name):
    row = next(line for line in (DOCS / "guide.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    numbers = [
        round(100 * value) if option.endswith("_reduction") else value
        for step in load_recipe(name).steps
        for option, value in step.options.items()
        if option.endswith("_reduction") or option == "epochs"
    ]
    assert [int(number) for number in re.findall(r"\b\d+\b", row)] == numbers
