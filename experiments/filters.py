"""What the filter pruning experiments share: a baseline, pruned networks with one fine-tuning budget, int8 files."""

import dataclasses
import json
import lzma
import math
import os
import queue
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from experiments import measure
from experiments.runner import check_at_least, option, or_exit, write_json
from tfcompress.files import replacing, save_model, write_text

# In the names of variants: 01 to 99.
PERCENT = r"(?!00)\d\d"
LONG = 3  # times the epochs of any other fine-tuning
CUTMIX = 0.5  # of the images of a fine-tuning with it
# What stands behind the name of a variant, in this order.
OPTIONS = ("nodistill", "soft", "cutout", "cutmix", "long", "iterative")
LARGEST_SHIPPED = 10_000_000  # bytes of weights in the results
STEPS = 4  # of iterative pruning
PROBES = 512  # held-out images that tell what pruning one layer does
PROBED = (0.25, 0.5, 0.75, 0.9)  # fractions of a layer's channels
PRECISIONS = ("float32", "mixed_bfloat16")  # those of TrainingConfig; to ask it would load Keras for --help


@dataclasses.dataclass(frozen=True)
class Training:
    """What a profile fixes; the other hyperparameters stand beside the stages that use them."""

    model: str = option("", "the network")
    dataset: str = option("cifar10", "cifar10, cifar100 or digits")
    train_images: int = option(0, "train on so many images only; 0 means all")
    held_out: int = option(2500, "training images kept for choices, at most a tenth of them")
    baseline_seed: int = option(0, "seed of the baseline, which all fine-tuning seeds share")
    baseline_epochs: int = option(60, "epochs of the baseline")
    baseline_cutout: int = option(0, "side in pixels of the square hidden in each image that the baseline trains on")
    baseline_cutmix: float = option(
        0.0, "fraction of the baseline's training images that show another one in a rectangle", identity="if given"
    )
    baseline_weight_decay: float = option(5e-3, "weight decay of the baseline, 10 times the L2 of the papers")
    baseline_grown_from: str = option(
        "", "baseline of a shallower ResNet, an .npz of the results, that the baseline grows from", identity="if given"
    )
    train_baseline: bool = option(
        False, "train the baseline, as the flags say, in the place of the one in the results", identity=False
    )
    finetune_epochs: int = option(20, "epochs of each pruned network")
    qat_epochs: int = option(3, "epochs of quantization-aware training")
    precision: str = option("mixed_bfloat16", "arithmetic of the float trainings: float32 or mixed_bfloat16")
    variants: tuple = option((), "pruned networks, named as the module's help says; none: all of them", identity=False)

    def __post_init__(self):
        check_at_least(1, self, "held_out", "baseline_epochs", "finetune_epochs", "qat_epochs")
        check_at_least(0, self, "train_images", "baseline_cutout", "baseline_weight_decay")
        if not 0 <= self.baseline_cutmix <= 1:
            raise ValueError(f"baseline_cutmix must be in [0, 1]. Received: {self.baseline_cutmix}")
        if self.baseline_grown_from and not self.model.startswith("resnet"):
            raise ValueError(f"baseline_grown_from is for ResNets. Received: model={self.model}")
        if self.baseline_grown_from:
            object.__setattr__(self, "baseline_grown_from", os.path.normpath(self.baseline_grown_from))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {' or '.join(PRECISIONS)}. Received: {self.precision!r}")


# What files from before these could be chosen do not name.
OLD = {name: getattr(Training, name) for name in ("train_images", "held_out", "precision")}
OLD |= {"cutout": 0, "cutmix": 0.0, "grown_from": ""}
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError)


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """The configuration where only some of the pruned networks are quantized."""

    quantized: tuple = option(
        (),
        f"brought to int8: variants, float32 or {measure.NOTHING!r}; by default float32 and the first variant",
        identity=False,
    )
    from_results: bool = option(
        False, "take pruned networks that the results hold, in place of training them again", identity=False
    )
    jobs: int = option(1, "pruned networks that are trained at a time, each on its share of the cores", identity=False)

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, self, "jobs")


def split_options(name):
    """The name of a variant without the options behind it, and these, a frozenset of names from `OPTIONS`."""
    pattern = "".join(f"(?:-{option})?" for option in OPTIONS)
    base, options = re.fullmatch(rf"(.*?)({pattern})", name, re.DOTALL).groups()
    return base, frozenset(options.split("-")[1:])


def check_quantized(config, variants):
    """Refuses to quantize what is not among the pruned networks."""
    if measure.NOTHING in config.quantized[1:] + config.quantized[:-1]:
        raise ValueError(f"quantized: {measure.NOTHING} stands alone. Received: {', '.join(config.quantized)}")
    missing = set(config.quantized) - {"float32", measure.NOTHING, *variants}
    if missing:
        allowed = ", ".join((*variants, "float32"))
        raise ValueError(f"quantized must be among the variants, {allowed}. Received: {sorted(missing)}")


def to_quantize(config, default):
    """The networks that a configuration brings to int8; the default ones where it names none."""
    return () if config.quantized == (measure.NOTHING,) else config.quantized or default


def baseline(task, build, split, start=""):
    """Trains the unpruned network, or takes its weights from the results, where a long training has left them.

    The weights are rounded as `_pack` does: what is kept in the results is what everything else started from.

    Args:
        task: the `Run`.
        build: function that returns the untrained network.
        split: the `Split`.
        start: file to take it from instead: a `.keras`, or the `.npz` of other results.

    Returns:
        A Keras model.

    Raises:
        SystemExit: the file is no baseline of this network, or the weights were trained otherwise than the flags say.
            Where they say nothing, the task adopts what the file says. Also where a variant takes the baseline's
            cutout, and there is none.
    """
    import keras

    from tfcompress.training.checkpoint import digest

    keras.utils.set_random_seed(task.config.baseline_seed)
    model = or_exit(build)
    shipped = task.results / task.experiment / f"baseline-{task.profile}-seed{task.config.baseline_seed}.npz"
    ships = shipped.exists() and not task.config.train_baseline
    if start:
        print(f"\n== baseline: weights of {start}", flush=True)
        if notes := load_weights(model, start):
            _adopt_training(task, start, notes, ("held_out",))
    elif ships:
        print(f"\n== baseline: weights of {shipped} (--train_baseline trains others in their place)", flush=True)
        notes = load_weights(model, shipped, "another folder of --results takes one of its own")
        _adopt_training(task, shipped, notes, ("train_images", "held_out", "precision"))
        task.seconds["baseline"] = _seconds(notes["history"])
    hidden = [name for name in task.config.variants if "cutout" in split_options(name)[1]]
    if hidden and not task.config.baseline_cutout:
        raise SystemExit(f"{hidden[0]} needs --baseline_cutout, which it is fine-tuned with")
    if not start and not ships:
        _train(task, model, split, shipped)
    task.baseline = digest(model.get_weights())[:16]
    return model


def _train(task, model, split, shipped):
    from tfcompress.training import TrainingConfig, accuracy, fit
    from tfcompress.training.checkpoint import digest

    config = task.config
    if config.baseline_grown_from:
        _grow(task, model, split)
    training = TrainingConfig(
        epochs=config.baseline_epochs,
        learning_rate=0.1,
        warmup_epochs=min(2, config.baseline_epochs / 4),
        weight_decay=config.baseline_weight_decay,
        crop_padding=4,
        flip=True,
        cutout=config.baseline_cutout,
        cutmix=config.baseline_cutmix,
        precision=config.precision,
        seed=config.baseline_seed,
    )
    # All fine-tuning seeds and later choices of variants share this folder; fit refuses one of another training.
    hyperparameters = f"{training.epochs}epochs-cutout{training.cutout}-decay{training.weight_decay:g}"
    if training.cutmix:
        hyperparameters += f"-cutmix{training.cutmix:g}"
    if config.baseline_grown_from:
        hyperparameters += f"-grown{digest(model.get_weights())[:8]}"
    directory = task.workdir / f"{task.experiment}-{task.profile}-baseline{training.seed}-{hyperparameters}"
    print(f"\n== baseline: {directory}", flush=True)
    history = fit(model, *split.train, training, validation=split.validation, directory=directory)
    task.seconds["baseline"] = _seconds(history)
    packed = _pack(model.get_weights())
    model.set_weights(_unpack(packed))
    notes = {
        "command": task.command,
        "training": dataclasses.asdict(training),
        "train_images": config.train_images,
        "held_out": config.held_out,
        "grown_from": task.identity.get("baseline_grown_from", ""),
        "images": digest([split.train[0]])[:16],
        "val_top1": accuracy(model, *split.validation),
        "history": history,
    }
    _save_packed(packed, shipped, notes)


def _grow(task, model, split):
    """Gives a ResNet the weights of a shallower one's baseline, as `deepen` repeats them.

    BatchNorm's statistics are still the shallow network's: the training that follows gives it others before they count.

    Raises:
        SystemExit: the file holds no shallower ResNet with these classes, or one that has seen other images: some of
            those that are held out now, maybe.
    """
    from tfcompress.models import deepen, resnet
    from tfcompress.training.checkpoint import digest

    start = task.config.baseline_grown_from
    try:
        with np.load(start) as stored:
            convolutions = sum(stored[name].ndim == 4 for name in stored.files)
        shallow = resnet(convolutions + 1, model.output_shape[-1])
    except (*UNREADABLE, AttributeError, TypeError) as error:
        raise SystemExit(f"--baseline_grown_from needs the .npz of a ResNet's baseline: {start}: {error}") from error
    notes = {**OLD, **load_weights(shallow, start)}
    now = {**dataclasses.asdict(task.config), "images": digest([split.train[0]])[:16]}
    others = [name for name in ("train_images", "held_out", "images") if notes.get(name, now[name]) != now[name]]
    if others:
        raise SystemExit(
            f"--baseline_grown_from: {start} was trained on other images: "
            + ", ".join(f"{name} {notes[name]}, now {now[name]}" for name in others)
        )
    model.set_weights(or_exit(deepen, shallow, int(model.name.removeprefix("resnet"))).get_weights())


def prune_and_finetune(task, name, unpruned, split, criterion, options=frozenset(), *, training=None, **budget):
    """Prunes the baseline, and trains what is left.

    Args:
        task: the `Run`.
        name: the variant's name.
        unpruned: the baseline.
        split: the `Split`.
        criterion: as for `prune_channels`.
        options: those of `OPTIONS` that the fine-tuning has. Without "nodistill" the unpruned network teaches the
            pruned one; with "soft", filters are zeroed after every epoch, and removed at the end only; with
            "iterative", they go in `STEPS` steps, each with its share of the epochs, to the widths of a single one,
            which `ratios` in the budget fix. The others are those of `finetuning`.
        training: the `TrainingConfig`, if it is not that of `finetuning`.
        budget: the other arguments of `prune_channels`.

    Returns:
        The network and its `PruningPlan`.
    """
    from tfcompress import apply_plan, criteria, recalibrate
    from tfcompress.graph import copy_model
    from tfcompress.training import SoftPruning, fit

    if "iterative" in options and ("soft" in options or "ratios" not in budget):
        raise ValueError(f"iterative pruning needs ratios, and is not soft. Received: {options}, {budget}")
    arguments = {"validation": split.validation}
    if "nodistill" not in options:
        arguments["teacher"] = cached(task, unpruned)
    images = split.train[0][:1024].astype("float32") / 255
    if isinstance(criteria.get(criterion), criteria.Random):
        criterion = criteria.Random(task.seed)
    training = training or finetuning(task, options)
    with task.stage(name) as directory:
        if "soft" in options:
            model = copy_model(unpruned)
            pruning = SoftPruning(model, criterion, directory / "plan.json", **budget)
            fit(model, *split.train, training, directory=directory, callbacks=[pruning], **arguments)
            plan = pruning.plan
            model = apply_plan(model, plan)
            # The filters that go had come back in the last epoch.
            recalibrate(model, images, batch_size=128)
        elif "iterative" not in options:
            model, plan = _pruned(unpruned, criterion, budget, images, directory)
            fit(model, *split.train, training, directory=directory, **arguments)
        else:
            model, plan = unpruned, None
            for step, (ratios, epochs) in enumerate(_shares(unpruned, STEPS, training.epochs, **budget), 1):
                print(f"   step {step} of {STEPS}", flush=True)
                folder = directory / f"step{step}"
                folder.mkdir(exist_ok=True)
                model, narrower = _pruned(model, criterion, {**budget, "ratios": ratios}, images, folder)
                # Other augmentations than in the steps before.
                part = dataclasses.replace(
                    training,
                    epochs=epochs,
                    warmup_epochs=min(training.warmup_epochs, epochs / 4),
                    seed=training.seed + 1000 * (step - 1),
                )
                fit(model, *split.train, part, directory=folder, **arguments)
                plan = plan.then(narrower) if plan else narrower
        print(f"   {plan.params_reduction:.1%} of the parameters, {plan.macs_reduction:.1%} of the MACs removed")
    task.publish_text(f"{name}.plan.json", plan.to_json())
    return model, plan


def train_side_by_side(task, names, quantized):
    """Trains pruned networks in processes of their own, `jobs` at a time, each on its share of the cores.

    Small convolutions gain little from a second core: two trainings side by side, on one core each, do more than one on
    both. Each process runs the command of the task with one variant, and keeps what it has trained where the task goes
    on from. What one of them fails to train, the task trains again, and shows why.

    Args:
        task: the `Run`.
        names: variants; those that are trained already are left out.
        quantized: those of them that are brought to int8.
    """
    waiting = [name for name in names if not (task.directory / name / "seconds.json").exists()]
    jobs = min(task.config.jobs, len(waiting))
    if jobs < 2:
        return
    shares = queue.SimpleQueue()
    for cores in np.array_split(_cores(), jobs):
        shares.put(cores.tolist() or _cores())

    def train(name):
        cores = shares.get()
        one = [f"--variants={name}", f"--quantized={name if name in quantized else measure.NOTHING}"]
        try:
            # Of flags given twice, the last ones count.
            _run_apart([*_command(task), *one, "--jobs=1", "--notrain_baseline"], name, cores)
        finally:
            shares.put(cores)

    print(f"\n== {', '.join(waiting)}: {jobs} at a time", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, waiting))


def _command(task):
    return [sys.executable, "-m", task.command.split()[2], *sys.argv[1:]]


def _cores():
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _run_apart(command, name, cores):
    """Runs a command on some cores, and prints its lines behind the name."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # of this thread; its processes inherit it
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(len(cores))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for line in process.stdout:
            print(f"{name}: {line}" if line.strip() else line, end="", flush=True)
    if process.returncode:
        print(f"{name}: exit status {process.returncode}", file=sys.stderr)


def _shares(unpruned, steps, epochs, *, ratios, skip):
    """What each step of a pruning removes, and for how many epochs it is fine-tuned.

    Every step removes the same fraction of the filters that the ones before have left.

    Returns:
        A list of ({layer: fraction of the filters it then has that goes}, epochs).
    """
    from tfcompress import ChannelGraph

    sizes = {group.name: len(group) for group in ChannelGraph(unpruned, skip).groups}
    kept = {
        # Halves go down, as in prune_channels.
        layer: [max(1, math.ceil(sizes[layer] * (1 - ratio) ** (step / steps) - 0.5)) for step in range(steps + 1)]
        for layer, ratio in ratios.items()
    }
    return [
        (
            {layer: 1 - counts[step + 1] / counts[step] for layer, counts in kept.items()},
            epochs * (step + 1) // steps - epochs * step // steps,
        )
        for step in range(steps)
    ]


def sensitive_ratios(task, unpruned, split, criterion, macs_reduction, skip):
    """What each layer loses where what does the least damage for the MACs it saves goes first.

    Args: as for `prune_channels`. The damage is measured on held-out images and kept in the results, for all seeds and
        reductions.

    Returns:
        {layer name: fraction of its channels that goes}.
    """
    from tfcompress import plan_pruning, sensitivity
    from tfcompress.training.checkpoint import digest

    x, y = (array[:PROBES] for array in split.validation)
    probed = repr((PROBED, criterion.name, vars(criterion), skip))
    origin = digest([*unpruned.get_weights(), x, y, np.array(probed)])[:16]
    path = task.results / task.experiment / f"sensitivity-{task.profile}-seed{task.config.baseline_seed}.json"
    measured = _measured_sensitivity(path, origin)
    if not measured:
        with task.stage("sensitivity"):
            print(f"   measuring what pruning each layer does, on {len(x)} held-out images", flush=True)
            measured = sensitivity(unpruned, x, y, ratios=PROBED, criterion=criterion, skip=skip, verbose=True)
            write_json(path, {"of": origin, **vars(measured)})
    plan = plan_pruning(unpruned, criterion, macs_reduction=macs_reduction, scope=measured, skip=skip)
    return {
        layer: 1 - len(kept) / plan.widths[layer] for layer, kept in plan.kept.items() if len(kept) < plan.widths[layer]
    }


def _measured_sensitivity(path, origin):
    """The `Sensitivity` in a file, or None: it is not there, damaged, or of something else."""
    from tfcompress import Sensitivity

    try:
        text = path.read_text()
        return Sensitivity.from_json(text) if json.loads(text)["of"] == origin else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def from_results(task, name):
    """A pruned network that the results hold of this configuration, and its plan; None without --from_results.

    Also None where they do not hold it.

    Raises:
        SystemExit: its files are damaged, or do not belong together.
    """
    from tfcompress import PruningPlan, profile
    from tfcompress.models import load_model

    path, plan_path = (task.result_directory / f"{name}.{end}" for end in ("keras", "plan.json"))
    if not task.config.from_results or not path.exists() or name not in measure.recorded_variants(task):
        return None
    print(f"\n== {name}: {path}", flush=True)
    try:
        model, plan = load_model(path), PruningPlan.from_json(plan_path.read_text())
    except UNREADABLE as error:
        raise SystemExit(f"{path} and {plan_path.name} cannot be read, remove both: {error}") from error
    if profile(model).macs != plan.after.macs:
        raise SystemExit(f"{path} is not the network of {plan_path.name}; remove both")
    return model, plan


def ship(task, name, model):
    """Puts a network that this run has pruned into the results of the first seed, if it is small, and not there yet."""
    if name not in task.seconds:  # it is from there
        return
    path = task.directory / f"{name}.keras"
    if _holds(task.result_directory / path.name, model):  # saved again, it would be of other bytes
        return
    save_model(model, path)
    if task.seed == 0 and path.stat().st_size < LARGEST_SHIPPED:
        task.publish(path)


def _holds(path, model):
    """Whether a file holds a network with these weights."""
    from tfcompress.models import load_model

    try:
        weights = load_model(path).get_weights() if path.exists() else []
    except UNREADABLE:
        return False
    return len(weights) == len(model.weights) and all(map(np.array_equal, weights, model.get_weights()))


def _pruned(unpruned, criterion, budget, images, directory):
    """The pruned network before its fine-tuning, recalibrated on the images, and its plan.

    Both are kept in the directory, for this network and budget: a fine-tuning resumes from these weights only, not from
    almost the same ones, as another processor computes them.
    """
    from tfcompress import PruningPlan, prune_channels, recalibrate
    from tfcompress.models import load_model
    from tfcompress.training.checkpoint import digest

    origin = digest([*unpruned.get_weights(), np.array(repr(budget))])[:16]
    path, plan_path = directory / f"pruned-{origin}.keras", directory / f"pruned-{origin}.plan.json"
    if path.exists():
        return load_model(path), PruningPlan.from_json(plan_path.read_text())
    model, plan = prune_channels(unpruned, criterion, **budget)
    recalibrate(model, images, batch_size=128)
    write_text(plan_path, plan.to_json())
    save_model(model, path)
    return model, plan


def cached(task, teacher):
    """The teacher for all students of all experiments, whose logits are kept beside their runs."""
    from tfcompress.training import CachedTeacher

    return CachedTeacher(teacher, task.workdir / "teacher")


def finetuning(task, options=frozenset()):
    """The hyperparameters of a fine-tuning.

    Args:
        task: the `Run`.
        options: "cutout" hides squares of the images, as large as in the baseline's; with "cutmix", half of the images
            show another one in a rectangle; "long" takes three times as long as the others.
    """
    from tfcompress.training import TrainingConfig

    return TrainingConfig(
        epochs=task.config.finetune_epochs * (LONG if "long" in options else 1),
        cutout=task.config.baseline_cutout if "cutout" in options else 0,
        cutmix=CUTMIX if "cutmix" in options else 0.0,
        learning_rate=0.05,
        warmup_epochs=min(1, task.config.finetune_epochs / 4),
        weight_decay=5e-3,
        crop_padding=4,
        flip=True,
        distillation_weight=0.9,
        temperature=4.0,
        precision=task.config.precision,
        seed=task.seed,
    )


def quantize(task, name, model, teacher, split, training=None, preserve_sparsity=False):
    """Quantization-aware training of a float network; returns its int8 variant, `int8-qat` behind its name.

    With `preserve_sparsity` the network is its teacher with zeros in it, which has the parameters and MACs.
    """
    from tfcompress import quantization_aware_training

    training = training or quantizing(task)
    name = measure.quantized_name(name)
    with task.stage(name) as directory:
        quantized = quantization_aware_training(
            model,
            *split.train,
            training,
            preserve_sparsity=preserve_sparsity,
            teacher=cached(task, teacher),
            validation=split.validation,
            directory=directory,
        )
    return measure.export(task, name, quantized, teacher if preserve_sparsity else model, "int8")


def quantizing(task):
    """The hyperparameters of every quantization-aware training."""
    from tfcompress.training import TrainingConfig

    return TrainingConfig(
        epochs=task.config.qat_epochs, learning_rate=0.005, crop_padding=4, flip=True, temperature=4.0, seed=task.seed
    )


def _seconds(history):
    return round(sum(row["seconds"] for row in history), 1)


def _pack(weights):
    """What the results keep of a network's weights.

    That is float16 numbers; of a network too large for those, the filters are int8 multiples of a step each, an eighth
    of their standard deviation. Rounding then adds noise 29 dB below the weights, and one takes no more than 5.2 bits
    of the file: VGG16 fits into 10 MB.

    Args:
        weights: list of float32 arrays.

    Returns:
        {name: array}, in order.
    """
    large = 2 * sum(array.size for array in weights) > LARGEST_SHIPPED
    packed = {}
    for i, array in enumerate(weights):
        # Depthwise kernels, small, have one filter for each channel on another axis.
        if large and array.ndim > 1 and array.shape[-1] > 1:
            rest = tuple(range(array.ndim - 1))
            step = np.maximum(array.std(axis=rest) / 8, np.abs(array).max(axis=rest) / 127).astype("float32")
            packed[f"{i:04d}"] = np.round(array / np.where(step > 0, step, 1)).astype("int8")
            packed[f"{i:04d}-step"] = step
        else:
            packed[f"{i:04d}"] = array.astype("float16")
    return packed


def _unpack(packed):
    """The weights that `_pack` has rounded, as float32 arrays."""
    names = sorted(name for name in packed if name.isdigit())
    return [packed[name].astype("float32") * packed.get(f"{name}-step", np.float32(1)) for name in names]


def _save_packed(packed, path, notes):
    """Writes an .npz whose arrays are compressed better than `np.savez_compressed` can: by 4 % for small integers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as file:
        for name, array in {**packed, "notes": np.array(json.dumps(notes))}.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)


def _adopt_training(task, path, notes, same):
    """Makes the options that no flag gave those that weights were trained with.

    Args:
        task: the `Run`.
        path: the file of the weights.
        notes: what `_save_packed` wrote beside them.
        same: options that must be as they were, since more than the baseline depends on them.

    Raises:
        SystemExit: one of these differs, or an option that a flag gave.
    """
    trained = {**OLD, **notes["training"], **notes}
    flags = {name: f"baseline_{name}" for name in ("epochs", "cutout", "cutmix", "weight_decay", "grown_from")}
    task.adopt({flag: trained[name] for name, flag in flags.items() if flag not in task.given})
    flags |= {name: name for name in same}
    now = {**vars(task.config), **task.identity}
    others = {name: flag for name, flag in flags.items() if trained[name] != now[flag]}
    if others:
        raise SystemExit(
            f"{path} is of another training: "
            + ", ".join(f"{name} {trained[name]}, now {now[flag]}" for name, flag in others.items())
            + ". To start from it: "
            + " ".join(f"--{flag}={trained[name]}" for name, flag in others.items())
        )


def load_weights(model, path, hint=""):
    """Copies the weights of a file into a network; returns its notes, {} for those of a `.keras`.

    Raises:
        SystemExit: they are those of another network, or cannot be read. The hint says what else can be done.
    """
    from tfcompress.models import load_model

    try:
        if str(path).endswith(".npz"):
            return _load_packed(model, path)
        model.set_weights(load_model(path).get_weights())
        return {}
    except UNREADABLE as error:
        raise SystemExit(f"{path} is no baseline of this {model.name}: {error}" + (hint and f"; {hint}")) from error


def _load_packed(model, path):
    """Copies what `_save_packed` wrote into a network; returns the notes."""
    with np.load(path) as stored:
        model.set_weights(_unpack(stored))
        return json.loads(str(stored["notes"]))
