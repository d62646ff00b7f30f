"""What every experiment shares: flags from a dataclass, a run directory per configuration, timed stages, the record."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from absl import app, flags

from tfcompress.files import replacing, write_text
from tfcompress.tflite import benchmark

FLAGS = flags.FLAGS


def main(name, profiles, run):
    """Defines the flags of an experiment from its configuration, and runs it.

    Args:
        name: module name of the experiment, as in `python -m experiments.<name>`.
        profiles: {profile name: configuration}, frozen dataclasses of one type whose fields carry
            `metadata={"help": ...}`; each field becomes a flag that overrides the profile's value.
        run: function of a `Run`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    config_type = type(next(iter(profiles.values())))
    flags.DEFINE_enum(
        "profile", "quick", list(profiles), "smoke: seconds; quick: minutes; full: the published comparison"
    )
    flags.DEFINE_integer("seed", 0, "seed of the initial weights, the shuffling and the augmentation")
    flags.DEFINE_string("workdir", "runs", "where checkpoints go; the same command resumes from there")
    flags.DEFINE_string("results", "results", "where the record, the .tflite files and the curves go")
    for field in dataclasses.fields(config_type):
        _define(field)
    # So that --help lists them, not only --helpfull.
    for flag in ("profile", "seed", "workdir", "results", *(field.name for field in dataclasses.fields(config_type))):
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[flag])

    def start(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
        given = [field.name for field in dataclasses.fields(config_type) if FLAGS[field.name].present]
        config = _override(profiles[FLAGS.profile], given)
        command = f"python -m experiments.{name} --profile={FLAGS.profile} --seed={FLAGS.seed}"
        # Neither how many are trained at a time, nor what is not wanted anyway, is needed to repeat it.
        command += "".join(f" {_shown(FLAGS[key])}" for key in given if key != "jobs" and FLAGS[key].value is not False)
        folders = Path(FLAGS.workdir), Path(FLAGS.results)
        if FLAGS.profile == "smoke":
            benchmark.SECONDS = 0.1  # per file: no latency of this profile is published
        run(Run(name, FLAGS.profile, FLAGS.seed, config, command, *folders, given=tuple(given)))

    try:
        app.run(start)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it stopped")


def _override(config, names):
    """The configuration with the values of the named flags; a tuple's numbers keep the type of the default's."""
    values = {name: FLAGS[name].value for name in names}
    try:
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(map(type((getattr(config, name) or ("",))[0]), value))
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise app.UsageError(str(error)) from error


def or_exit(function, *arguments):
    """The value of a function that a flag was for; its ValueError ends the program without a traceback."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def check_at_least(least, config, *names):
    """Raises ValueError where an option of a configuration, or one of its numbers, is less than that."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,), default=least) < least:
            raise ValueError(f"{name} must be at least {least}. Received: {value}")


def _shown(flag):
    """A flag as the record shows it: of a file elsewhere on this machine only the name."""
    shown = _without_folder(flag.value)
    return flag.serialize() if shown is flag.value else f"--{flag.name}={shown}"


def _without_folder(value):
    """Of an absolute path only the name: records are for other machines, too."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _define(field):
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_list,
    }
    define[field.type](field.name, None, field.metadata["help"])


@dataclasses.dataclass
class Run:
    """One run of an experiment.

    Attributes:
        experiment: its name, under which records are kept.
        profile: smoke, quick or full.
        seed: of everything random.
        config: the experiment's dataclass.
        command: the command line that repeats the run.
        workdir: folder of all runs.
        results: folder of all results.
        given: names of the options that flags gave; the others are the profile's.
        seconds: {stage: wall-clock seconds}, kept over interruptions.
        notices: what must be said again at the end.
        baseline: digest of the weights that everything else starts from, once they are there.
    """

    experiment: str
    profile: str
    seed: int
    config: object
    command: str
    workdir: Path
    results: Path
    given: tuple = ()
    seconds: dict = dataclasses.field(default_factory=dict)
    notices: list = dataclasses.field(default_factory=list)
    baseline: str = ""

    @property
    def identity(self):
        """{option: value} of all options that what a stage computes depends on; of a file elsewhere, its name."""
        values = {}
        for field in dataclasses.fields(self.config):
            value, counts = getattr(self.config, field.name), field.metadata.get("identity", True)
            if counts is True or (counts == "if given" and value):
                values[field.name] = _without_folder(value)
        return values

    @property
    def configuration(self):
        """The identity, and the digest of the weights that everything starts from, once they are there."""
        return {**self.identity, **({"baseline": self.baseline} if self.baseline else {})}

    @property
    def directory(self):
        """The run directory: named by experiment, profile, seed and a hash of what its stages depend on."""
        fingerprint = hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()[:8]
        return self.workdir / f"{self.experiment}-{self.profile}-seed{self.seed}-{fingerprint}"

    @property
    def result_directory(self):
        """Where the committed results of this run go."""
        return self.results / self.experiment / f"{self.profile}-seed{self.seed}"

    def adopt(self, options):
        """Sets options, {name: value}, as if flags had given them: the command then repeats the run elsewhere, too."""
        names = [field.name for field in dataclasses.fields(self.config)]
        for name in sorted(options, key=names.index):
            if getattr(self.config, name) == options[name]:
                continue
            later = [self.command.find(f" --{other}=") for other in names[names.index(name) + 1 :]]
            at = min((place for place in later if place >= 0), default=len(self.command))
            self.command = f"{self.command[:at]} --{name}={_without_folder(options[name])}{self.command[at:]}"
        self.config = dataclasses.replace(self.config, **options)

    @contextmanager
    def stage(self, name):
        """Announces a stage, gives it its directory and notes its wall-clock time in `seconds`.

        A stage that was interrupted counts the epochs it had finished before; a finished one keeps its first time.
        """
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        clock = directory / "seconds.json"
        print(f"\n== {name}", flush=True)
        from tfcompress.training.fit import history_seconds

        histories = (path.with_name("history.csv") for path in directory.rglob("checkpoint.npz"))
        epochs_before = sum(history_seconds(path) for path in histories if path.exists())
        start = time.perf_counter()
        yield directory
        if clock.exists():
            self.seconds[name] = json.loads(clock.read_text())
        else:
            self.seconds[name] = round(epochs_before + time.perf_counter() - start, 1)
            write_text(clock, json.dumps(self.seconds[name]))
        print(f"== {name}: {self.seconds[name]:.0f} s", flush=True)

    def close(self):
        """Prints the time of every stage, and the notices of the beginning once more."""
        print("\n".join(f"{name:24}{seconds:8.0f} s" for name, seconds in self.seconds.items()))
        print(f"{'total':24}{sum(self.seconds.values()):8.0f} s", flush=True)
        for notice in self.notices:
            print(notice, file=sys.stderr)

    def publish_text(self, name, text):
        """Writes a small file into the results."""
        self.result_directory.mkdir(parents=True, exist_ok=True)
        write_text(self.result_directory / name, text)

    def publish(self, path):
        """Copies a file into the results."""
        self.result_directory.mkdir(parents=True, exist_ok=True)
        with replacing(self.result_directory / path.name) as part:
            shutil.copyfile(path, part)


def option(default, text, identity=True):
    """A field of a configuration, with the help of its flag.

    Args:
        default: its value.
        text: what the flag means.
        identity: whether what a stage computes depends on it; if not, a change goes on in the same run directory.
            "if given": only where it is not empty, so that directories of before there was such an option keep their
            names.
    """
    return dataclasses.field(default=default, metadata={"help": text, "identity": identity})


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of an experiment, each an (images, labels): to train on, held out for choices, and for the end."""

    train: tuple
    validation: tuple
    test: tuple


def load_split(task, name, held_out, train_images=0, rgb=False):
    """Loads a data set for a task, or, loudly, scikit-learn's digits where it cannot be had.

    Args:
        task: a `Run`; its `notices` repeat at its end what was said here.
        name: as for `tfcompress.datasets.load`.
        held_out: number of training images to hold out; a tenth of them, if that is less.
        train_images: train on so many of the others only; 0 means all.
        rgb: whether the network takes (32, 32, 3) images: smaller ones are padded, grey ones repeated.

    Returns:
        The name of the data set that was loaded, and a `Split`.

    Raises:
        SystemExit: a flag wants more of them to be held out than a tenth.
    """
    from tfcompress import datasets

    try:
        data = or_exit(datasets.load, name)
    except datasets.DatasetError as error:
        data = datasets.load("digits")
        notice = f"{error}.\nRUNNING ON scikit-learn's digits INSTEAD: not comparable with the published numbers."
        print(f"{'!' * 100}\n{notice}\n{'!' * 100}", file=sys.stderr)
        task.notices.append(notice)
    images, test_images = (_as_rgb(x) if rgb else x for x in (data.x_train, data.x_test))
    count = held_out_of(task, len(images), held_out, data.name == name)
    train, validation = datasets.split_validation(images, data.y_train, count)
    if train_images:
        train = tuple(array[:train_images] for array in train)
    return data.name, Split(train, validation, (test_images, data.y_test))


def held_out_of(task, images, held_out, is_wanted=True):
    """How many of so many training images are held out: as many as wanted, but no more than a tenth.

    Raises:
        SystemExit: more are wanted, by a flag, of a data set that is wanted.
    """
    if "held_out" in task.given and is_wanted and held_out > images // 10:
        raise SystemExit(f"held_out must be at most {images // 10}, a tenth of the images. Received: {held_out}")
    return min(held_out, images // 10)


def _as_rgb(images):
    padding = (32 - images.shape[1]) // 2
    images = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def write_json(path, value):
    """Writes a value as JSON in one step; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")
    return path
