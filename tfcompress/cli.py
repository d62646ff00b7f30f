"""The command `tfcompress`: every step from a Keras model to a .tflite file, without writing Python."""

import argparse
import gc
import importlib.metadata
import os
import re
import sys

# Releases that the tests ran with: (first, first untested).
TESTED = {"keras": ("3.14", "3.16"), "tensorflow": ("2.20", "2.22"), "tf_keras": ("2.20", "2.22")}
USAGE, FAILURE = 2, 1

_MODEL = "a .keras or .h5 file"
_DATA = "an .npz file (x, y or x_train, y_train, ...), a folder with one folder of images per class, or tfds:NAME"


class CommandError(Exception):
    """A command that cannot be carried out as given; the message is all the user needs."""


def main(arguments=None):
    """Runs the command line; returns the exit code: 0, 1 for a failure, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if not options.run:
        parser.print_help()
        return USAGE
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _warn_of_versions()
    try:
        options.run(options)
    except KeyboardInterrupt:
        hint = "; the same command goes on where it stopped" if getattr(options, "resumable", False) else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return FAILURE
    except BrokenPipeError:
        return FAILURE
    except Exception as error:
        if options.verbose:
            raise
        text = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"tfcompress {options.command}: {' '.join(text.split())}", file=sys.stderr)
        known = (CommandError, ValueError, OSError, FloatingPointError, TypeError)
        if not isinstance(error, known):
            print(f"({type(error).__name__}; --verbose shows where)", file=sys.stderr)
        return USAGE if isinstance(error, CommandError) else FAILURE
    finally:
        if arguments is not None:
            # Called by a program that goes on, which wants its garbage collected; see `_load_model`.
            gc.unfreeze()
    return 0


def _joined(arguments):
    """`--scaling -1-1` as one word: argparse takes what begins with a dash for an option."""
    words = list(arguments)
    if "--scaling" in words[:-1]:
        at = words.index("--scaling")
        words[at : at + 2] = [f"--scaling={words[at + 1]}"]
    return words


def _parser():
    parser = argparse.ArgumentParser(
        prog="tfcompress",
        description="Makes a Keras model small and fast enough for phones, and measures the .tflite file.",
        epilog="Start with: tfcompress compress model.keras --data images.npz --recipe small -o out",
    )
    parser.add_argument("--version", action="version", version=f"tfcompress {_version()}")
    parser.set_defaults(run=None, verbose=False, command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name, run, help, example):
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example: tfcompress {name} {example}",
        )
        sub.add_argument("--verbose", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, command=name)
        return sub

    sub = command("profile", _profile, "layers, shapes, parameters, MACs and bytes of a model", "model.keras")
    sub.add_argument("model", metavar="MODEL", help=_MODEL)

    sub = command("groups", _groups, "the coupled channels of a model: what pruning removes together", "model.keras")
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_skip(sub)

    sub = command(
        "sensitivity",
        _sensitivity,
        "accuracy after pruning one layer at a time, without training",
        "model.keras --data images.npz --plot sensitivity.png -o sensitivity.json",
    )
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_data(sub)
    _add_skip(sub)
    sub.add_argument("--criterion", default="l1", help="which filters go (default: l1)")
    sub.add_argument("--layers", type=_words, help="layers to measure, with commas (default: all)")
    sub.add_argument(
        "--ratios", type=_fractions, help="fractions to remove, with commas (default: 0.1,0.3,0.5,0.7,0.9)"
    )
    sub.add_argument("--images", type=_count, default=2000, help="held-out images to measure on (default: 2000)")
    sub.add_argument("--plot", help="image file to draw the curves into")
    sub.add_argument("-o", "--output", help="file for tfcompress prune --scope, .json")

    sub = command(
        "prune",
        _prune,
        "remove whole filters: a smaller model with new shapes",
        "model.keras -o small.keras --criterion l2 --macs-reduction 0.5 --round-to 8",
    )
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    sub.add_argument("-o", "--output", help="the smaller model, .keras; its plan goes beside it, .plan.json")
    sub.add_argument("--criterion", default="l1", help="which filters go: l1, l2, geometric_median, ... (default: l1)")
    sub.add_argument("--ratio", type=float, help="fraction of the channels of every layer to remove, or:")
    sub.add_argument("--macs-reduction", type=float, help="fraction of the multiply-accumulates to remove")
    sub.add_argument(
        "--params-reduction",
        type=float,
        help="fraction of the parameters to remove; with --macs-reduction, the ratio changes with depth to reach both",
    )
    sub.add_argument(
        "--scope",
        default="layer",
        help="layer: same ratio everywhere (default); global: all compete; or the .json of tfcompress sensitivity: "
        "what does least damage goes first",
    )
    sub.add_argument("--round-to", type=int, default=1, help="kept widths are multiples of this (default: 1)")
    _add_skip(sub)
    _add_statistics_data(sub)
    sub.add_argument(
        "--dry-run", action="store_true", help="print the plan with predicted bytes and MACs, write nothing"
    )

    sub = command(
        "factorize",
        _factorize,
        "replace layers by two thin ones each, of lower rank",
        "model.keras -o thin.keras --macs-reduction 0.3 --data images.npz",
    )
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    sub.add_argument("-o", "--output", help="the model of thin layers, .keras")
    budget = sub.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs-reduction", type=float, help="fraction of the multiply-accumulates to remove, or:")
    budget.add_argument("--params-reduction", type=float, help="fraction of the parameters to remove, or:")
    budget.add_argument("--energy", type=float, help="fraction of its squared norm that every kernel keeps at least")
    sub.add_argument(
        "--scheme",
        choices=("spatial", "channel"),
        help="of convolutions larger than 1x1: a column and a row, or all pixels and 1x1 (default: what costs less)",
    )
    sub.add_argument("--skip", type=_words, default=(), help="layers that stay whole, with commas")
    _add_statistics_data(sub)
    sub.add_argument("--dry-run", action="store_true", help="print ranks, parameters and MACs, write nothing")

    sub = command(
        "finetune",
        _finetune,
        "train a model on, resumable; with a teacher, by distillation",
        "small.keras --data images.npz --teacher model.keras --epochs 10 -o tuned.keras",
    )
    sub.set_defaults(resumable=True)
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_data(sub)
    sub.add_argument("--teacher", help="model to learn from, .keras or .h5")
    sub.add_argument("-o", "--output", required=True, help="the trained model, .keras; checkpoints go beside it")
    _add_training(sub, epochs=10)
    _add_bfloat16(sub)

    sub = command(
        "quantize",
        _quantize,
        "write a .tflite file, quantized after training or with quantization-aware training",
        "model.keras --data images.npz --precision int8 --qat --epochs 2 -o model.tflite",
    )
    sub.set_defaults(resumable=True)
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_data(sub)
    sub.add_argument("-o", "--output", required=True, help="the .tflite file")
    sub.add_argument(
        "--precision",
        choices=("float32", "float16", "dynamic", "int8", "int16x8"),
        default="int8",
        help="default: int8, all of it, input and output included",
    )
    sub.add_argument("--qat", action="store_true", help="quantization-aware training first (int8 only)")
    training = sub.add_argument_group("training, with --qat")
    training.add_argument("--preserve-sparsity", action="store_true", help="weights that are zero stay zero in it")
    training.add_argument("--preserve-sharing", action="store_true", help="weights that share a value stay equal in it")
    _add_training(training, epochs=2)

    sub = command(
        "evaluate", _evaluate, "top-1 accuracy of a .tflite file or a model", "model.tflite --data images.npz"
    )
    sub.add_argument("model", metavar="FILE", help=f"a .tflite file, or {_MODEL}")
    _add_data(sub, holds_out=False)

    sub = command("benchmark", _benchmark, "latency of .tflite files, one inference each in turn", "a.tflite b.tflite")
    sub.add_argument("files", metavar="FILE", nargs="+", help=".tflite files")
    sub.add_argument("--threads", type=int, default=1, help="threads of the interpreter (default: 1)")

    sub = command(
        "compare",
        _compare,
        "signal-to-noise of every layer of two models: where a smaller one goes wrong",
        "model.keras model.tflite --data images.npz",
    )
    sub.add_argument("model", metavar="MODEL", help=f"the reference: {_MODEL}, or .tflite")
    sub.add_argument("other", metavar="OTHER", help="the other one: the same")
    _add_data(sub, holds_out=False)
    sub.add_argument("--images", type=_count, default=32, help="images to compare on (default: 32)")

    sub = command(
        "compress",
        _compress,
        "the whole way by a recipe: prune, train, quantize, measure, report",
        "model.keras --data images.npz --recipe small -o out",
    )
    sub.set_defaults(resumable=True)
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    sub.add_argument("--data", help=f"{_DATA} (not needed for --dry-run)")
    _add_data_options(sub)
    sub.add_argument("--recipe", default="small", help="small, fast, safe, or a YAML file (default: small)")
    _add_augmentation(sub)
    _add_bfloat16(sub)
    sub.add_argument("-o", "--output", help="the output folder")
    sub.add_argument("--dry-run", action="store_true", help="print the plan with predicted bytes and MACs, run nothing")
    return parser


def _add_skip(sub):
    sub.add_argument("--skip", type=_words, default=(), help="layers whose channels are all kept, with commas")


def _add_data(sub, holds_out=True):
    sub.add_argument("--data", required=True, help=_DATA)
    _add_data_options(sub, holds_out)


def _add_statistics_data(sub):
    sub.add_argument("--data", help=f"{_DATA}: BatchNorm statistics are measured anew on it")
    _add_data_options(sub, holds_out=False)


def _add_data_options(sub, holds_out=True):
    from tfcompress.datasets.user import SCALINGS

    sub.add_argument(
        "--scaling",
        choices=list(SCALINGS),
        default="0-1",
        help="what the model takes: " + "; ".join(f"{name}: {text}" for name, (*_, text) in SCALINGS.items()),
    )
    sub.add_argument(
        "--class-names", type=_words, help="names of the classes, with commas (default: folders or numbers)"
    )
    if holds_out:
        fraction = "fraction of the training images to hold out (0.1)"
        sub.add_argument("--held-out", type=float, default=0.1, help=fraction)
    sub.add_argument("--on-bad-image", choices=("stop", "skip"), default="stop", help="an image that does not decode")


def _add_training(sub, epochs):
    sub.add_argument("--epochs", type=int, default=epochs, help=f"default: {epochs}")
    sub.add_argument("--learning-rate", type=float, default=1e-3, help="the peak rate (default: 0.001)")
    sub.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="default: adam")
    sub.add_argument("--batch-size", type=int, default=128, help="default: 128")
    _add_augmentation(sub)
    sub.add_argument("--seed", type=int, default=0, help="of shuffling and augmentation (default: 0)")
    names = ("epochs", "learning_rate", "optimizer", "batch_size", "crop_padding", "flip", "seed")
    sub.set_defaults(training_defaults={name: sub.get_default(name) for name in names})


def _add_augmentation(sub):
    sub.add_argument("--crop-padding", type=int, default=0, help="random crops after padding by so many pixels")
    sub.add_argument("--flip", action="store_true", help="random horizontal flips: if the model was trained with them")


def _add_bfloat16(sub):
    sub.add_argument(
        "--bfloat16",
        action="store_true",
        help="fine-tune in bfloat16 arithmetic: faster where the processor has it (Intel AMX, AMD since Zen 4, GPUs)",
    )


def _words(text):
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _fractions(text):
    return tuple(float(word) for word in _words(text))


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is expected. Received: {text}")
    return int(text)


def _version():
    from tfcompress import __version__

    return __version__


def _warn_of_versions():
    for package, (first, untested) in TESTED.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed; tested: {first} up to, not including, {untested}", file=sys.stderr)
            continue
        if not _numbers(first) <= _numbers(found) < _numbers(untested):
            print(f"{package} {found} is untested; tested: {first} up to, not including, {untested}", file=sys.stderr)


def _numbers(version):
    return tuple(int(re.match(r"\d*", part)[0] or 0) for part in version.split(".")[:2])


def _profile(options):
    import tfcompress as tfc

    model = _load_model(options.model)
    profile = tfc.profile(model)
    print(profile)
    print(f"\nbytes: {profile.float32_bytes:,} in float32, about {profile.params:,} in int8")


def _groups(options):
    import tfcompress as tfc

    model = _load_model(options.model)
    print(tfc.ChannelGraph(model, options.skip))


def _sensitivity(options):
    import tfcompress as tfc
    from tfcompress.datasets.arrays import as_float, sample
    from tfcompress.files import write_text

    if options.plot:
        _check_plot(options.plot)
    output = options.output and _output(options, ".json")
    model, data = _model_and_data(options)
    x, y = sample(options.images, *data.validation)
    arguments = {"ratios": options.ratios} if options.ratios else {}
    chosen = {"layers": options.layers, "criterion": options.criterion, "skip": options.skip}
    result = tfc.sensitivity(model, as_float(x), y, verbose=True, **chosen, **arguments)
    print(result)
    if output:
        print(f"written: {write_text(output, result.to_json())}")
    if options.plot:
        result.plot(options.plot)
        print(f"written: {options.plot}")


def _prune(options):
    import tfcompress as tfc
    from tfcompress.files import write_text

    if options.scope not in ("layer", "global"):
        options.scope = _sensitivity_in(options.scope)
    names = ("criterion", "ratio", "macs_reduction", "params_reduction", "scope", "round_to", "skip")
    plan = _shrink(options, "smaller model (-o small.keras)", names, tfc.prune_channels, tfc.plan_pruning)
    if not options.dry_run:
        path = _output(options, ".keras").with_suffix(".plan.json")
        print(f"written: {write_text(path, plan.to_json())}")


def _sensitivity_in(path):
    import pathlib

    from tfcompress import Sensitivity

    path = pathlib.Path(path)
    if not path.is_file():
        raise CommandError(f"--scope is layer, global, or a file of `tfcompress sensitivity -o`. Received: {path}")
    try:
        return Sensitivity.from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _factorize(options):
    import tfcompress as tfc

    def plan_only(model, **arguments):
        return tfc.factorize(model, **arguments).plan

    names = ("energy", "macs_reduction", "params_reduction", "scheme", "skip")
    _shrink(options, "thinner model (-o thin.keras)", names, tfc.factorize, plan_only)


def _shrink(options, what, names, function, plan_only):
    """Makes a model smaller by a function of the options with these names, saves it and returns the plan.

    With --dry-run, `plan_only` plans it, and nothing is saved.
    """
    if not options.output and not options.dry_run:
        raise CommandError(f"give the file of the {what}, or --dry-run")
    model = _load_model(options.model)
    arguments = {name: getattr(options, name) for name in names}
    if options.dry_run:
        plan = plan_only(model, **arguments)
        print(plan)
        return plan
    output, images = _output(options, ".keras"), None
    if options.data:
        from tfcompress.compression.compress import calibration_images

        images = calibration_images(_data(options, model), 1024)
    model, plan = function(model, **arguments)
    if images is not None:
        from tfcompress import recalibrate

        recalibrate(model, images, batch_size=128)
    print(plan)
    _save(model, output)
    return plan


def _finetune(options):
    from tfcompress.outputs import as_logits, trainable_logits, with_softmax
    from tfcompress.training import fit

    output = _output(options, ".keras")
    model, data = _model_and_data(options)
    model, had_softmax = trainable_logits(model)
    teacher = as_logits(_load_model(options.teacher))[0] if options.teacher else None
    fit(
        model,
        *data.train,
        _training(options, "mixed_bfloat16" if options.bfloat16 else "float32"),
        validation=data.validation,
        teacher=teacher,
        directory=output.with_name(f"{output.name}.training"),
    )
    _save(with_softmax(model) if had_softmax else model, output)


def _quantize(options):
    import tfcompress as tfc
    from tfcompress.compression.compress import better_scaling, calibration_images, input_range
    from tfcompress.outputs import as_logits, trainable_logits

    trained = {**options.training_defaults, "held_out": 0.1, "preserve_sparsity": False, "preserve_sharing": False}
    given = [f"--{name.replace('_', '-')}" for name, value in trained.items() if getattr(options, name) != value]
    if given and not options.qat:
        raise CommandError(f"{', '.join(given)}: only with --qat, for its training")
    if options.qat and options.precision != "int8":
        raise CommandError(f"--qat gives int8 files. Received: --precision {options.precision}")
    output = _output(options, ".tflite")
    if not options.qat:
        options.held_out = None  # no choices are made
    model, data = _model_and_data(options)
    model, had_softmax = trainable_logits(model) if options.qat else as_logits(model)
    if message := better_scaling(model, data):
        print(f"warning: {message}", file=sys.stderr)
    if options.qat:
        model = tfc.quantization_aware_training(
            model,
            *data.train,
            _training(options),
            preserve_sparsity=options.preserve_sparsity,
            preserve_sharing=options.preserve_sharing,
            input_range=input_range(data),
            teacher=model,
            validation=data.validation,
            directory=output.with_name(f"{output.name}.training"),
        )
    file = tfc.export_tflite(model, output, options.precision, calibration_images(data), softmax=had_softmax)
    print(f"written: {file.path}, {file.bytes:,} bytes, {file.gzip_bytes:,} after gzip -9")


def _evaluate(options):
    import numpy as np

    import tfcompress as tfc
    from tfcompress.datasets.arrays import as_float
    from tfcompress.outputs import two_classes
    from tfcompress.training import accuracy

    if options.model.endswith(".tflite"):
        from tfcompress.tflite.evaluate import open_interpreter

        interpreter = open_interpreter(options.model, threads=1)
        shape = tuple(int(size) for size in interpreter.get_input_details()[0]["shape"][1:])
        classes = int(interpreter.get_output_details()[0]["shape"][-1])
        data = _load_data(options, shape, classes)
    else:
        model, data = _model_and_data(options)
        model = two_classes(model)
    parts = [data.test] if data.test else [part for part in (data.train, data.validation) if part]
    if len({x.dtype for x, _ in parts}) > 1:  # uint8 pixels, and floats that have been divided already
        parts = [(as_float(x), y) for x, y in parts]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts))
    top1 = tfc.evaluate_tflite(options.model, x, y) if options.model.endswith(".tflite") else accuracy(model, x, y)
    print(
        f"top-1 {top1:.2%} of {len(y):,} {'test images' if data.test else 'images, those of the training among them'}"
    )


def _benchmark(options):
    import tfcompress as tfc

    latencies = tfc.benchmark_interleaved(options.files, options.threads)
    width = max(map(len, options.files))
    print(f"{'file':{width}}  median (ms)  90th percentile (ms)  runs")
    for path, latency in zip(options.files, latencies):
        print(f"{path:{width}}  {latency.median:11.3f}  {latency.p90:20.3f}  {latency.runs:4}")


def _compare(options):
    import tfcompress as tfc
    from tfcompress.datasets.arrays import sample

    models = [path if path.endswith(".tflite") else _load_model(path) for path in (options.model, options.other)]
    reference = next((model for model in models if not isinstance(model, str)), None)
    if reference is None:
        raise CommandError("one of the two must be a Keras model, whose input shape the data are checked against")
    data = _data(options, reference)
    print(tfc.compare(*models, *sample(options.images, (data.validation or data.train)[0])))


def _compress(options):
    import shlex

    from tfcompress.compression.compress import compress, plan
    from tfcompress.compression.recipe import load_recipe
    from tfcompress.outputs import as_logits

    if not (options.output and options.data) and not options.dry_run:
        raise CommandError("give the data (--data images.npz) and the output folder (-o out), or --dry-run")
    augmentation = {name: value for name in ("crop_padding", "flip") if (value := getattr(options, name))}
    recipe = load_recipe(options.recipe).adapted(augmentation, options.bfloat16)
    if options.dry_run:
        model, _ = as_logits(_load_model(options.model))
        for step in recipe.steps:
            print(f"{step.kind}: {', '.join(f'{key}={value}' for key, value in step.options.items())}")
        plans = plan(model, recipe)
        print()
        print(
            "\n\n".join(map(str, plans)) if plans else f"nothing is removed: {model.count_params():,} parameters stay"
        )
        return
    model, data = _model_and_data(options)
    command = f"tfcompress {shlex.join(sys.argv[1:])}" if sys.argv[0].endswith(("tfcompress", "__main__.py")) else None
    result = compress(model, data, recipe, options.output, source=options.model, command=command)
    print(f"\n{result}\nreport: {result.folder / 'report.html'}")


def _load_model(path):
    """The model of a file.

    Looking for garbage among the modules and layers that come, now and at the end, would take a fifth of the time.
    """
    gc.disable()
    try:
        from tfcompress.models import load_model

        return load_model(path)
    finally:
        gc.freeze()
        gc.enable()


def _model_and_data(options):
    model = _load_model(options.model)
    return model, _data(options, model)


def _data(options, model):
    from tfcompress.outputs import check_classifier, two_classes

    model = two_classes(model)
    check_classifier(model)
    return _load_data(options, tuple(model.inputs[0].shape[1:]), model.outputs[0].shape[-1])


def _load_data(options, shape, classes):
    import pathlib

    from tfcompress.datasets import load_user_data

    output = getattr(options, "output", None)
    if output and pathlib.Path(output).resolve().is_relative_to(pathlib.Path(options.data).resolve()):
        raise CommandError(f"the output would be taken for data: -o {output} is inside --data {options.data}")
    return load_user_data(
        options.data,
        input_shape=shape,
        scaling=options.scaling,
        classes=classes,
        class_names=options.class_names,
        held_out=getattr(options, "held_out", None),
        on_bad_image=options.on_bad_image,
    )


def _training(options, precision="float32"):
    from tfcompress.training import TrainingConfig

    return TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        warmup_epochs=min(0.5, options.epochs / 4),
        crop_padding=options.crop_padding,
        flip=options.flip,
        precision=precision,
        seed=options.seed,
    )


def _output(options, suffix):
    """The path of -o, with this ending, in a folder that exists, and none that the command reads."""
    import pathlib

    path = pathlib.Path(options.output)
    if path.suffix != suffix:
        raise CommandError(f"the output is a {suffix} file. Received: -o {path}")
    for name in ("model", "teacher"):
        source = getattr(options, name, None)
        if source and pathlib.Path(source).resolve() == path.resolve():
            raise CommandError(f"the output would replace the {name} that is read. Received: -o {path}; name another")
    return _in_a_folder(path)


def _check_plot(path):
    import pathlib

    from matplotlib.backend_bases import FigureCanvasBase

    if pathlib.Path(path).suffix[1:] not in FigureCanvasBase.filetypes:
        raise CommandError(f"the plot is a .png, .svg or .pdf file. Received: --plot {path}")
    _in_a_folder(path)


def _in_a_folder(path):
    import pathlib

    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise CommandError(f"there is no folder {path.parent} for the output {path.name}")
    return path


def _save(model, path):
    from tfcompress.files import save_model

    print(f"written: {save_model(model, path)}, {model.count_params():,} parameters")


if __name__ == "__main__":
    sys.exit(main())
