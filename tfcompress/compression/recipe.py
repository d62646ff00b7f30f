"""Recipes: the steps of a compression as data, checked before anything runs."""

import contextlib
import dataclasses
import difflib
import pathlib
from typing import Any

import yaml

from tfcompress.tflite.export import PRECISIONS
from tfcompress.training.config import AUGMENTATIONS, TrainingConfig

SHIPPED = ("small", "fast", "safe")

_FRACTION = "a fraction in (0, 1)"
_SCOPES = ("layer", "global", "sensitivity")
_PRUNE = {
    "criterion": (str, "the name of a criterion"),
    "ratio": (float, _FRACTION),
    "macs_reduction": (float, _FRACTION),
    "params_reduction": (float, _FRACTION),
    "scope": (str, " or ".join(_SCOPES)),
    "round_to": (int, "a positive integer"),
    "skip": (list, "a list of layer names"),
    "ratios": (dict, "layer names and fractions"),
}
_TRAIN = {
    **{
        field.name: (field.type, f"{field.type.__name__}, as in TrainingConfig")
        for field in dataclasses.fields(TrainingConfig)
    },
    "distill": (bool, "true or false: whether the model as it came teaches it"),
}
_FACTORIZE = {
    "energy": (float, _FRACTION),
    "macs_reduction": (float, _FRACTION),
    "params_reduction": (float, _FRACTION),
    "scheme": (str, "spatial or channel"),
    "skip": (list, "a list of layer names"),
}
# What each kind of step takes; names and meanings are those of the Python API.
OPTIONS = {
    "prune": _PRUNE,
    "factorize": _FACTORIZE,
    "finetune": _TRAIN,
    "sparsify": {
        **_TRAIN,
        "sparsity": (float, "a fraction in [0, 1)"),
        "allocation": (str, "lamp or uniform"),
    },
    "share": {
        **_TRAIN,
        "clusters": (int, "an integer from 2 to 256"),
        "skip": (list, "a list of layer names"),
    },
    "qat": {**_TRAIN, "preserve_sparsity": (bool, "true or false"), "preserve_sharing": (bool, "true or false")},
    "export": {"precision": (str, ", ".join(PRECISIONS))},
}
# Once each, in this order, after all others.
_LAST = ("sparsify", "share", "qat")
REQUIRED = {
    "finetune": ("epochs",),
    "sparsify": ("epochs", "sparsity"),
    "share": ("epochs", "clusters"),
    "qat": ("epochs",),
}


class RecipeError(ValueError):
    """A recipe that cannot be carried out; the message names the place."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        kind: prune, factorize, finetune, sparsify, share, qat or export.
        options: {name: value}, as in the recipe.
        place: where it stands, for messages.
    """

    kind: str
    options: dict = dataclasses.field(hash=False)
    place: str = dataclasses.field(compare=False)

    def training(self):
        """The `TrainingConfig` of a step that trains."""
        names = [field.name for field in dataclasses.fields(TrainingConfig)]
        return TrainingConfig(**{name: value for name, value in self.options.items() if name in names})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The steps of a compression.

    Attributes:
        name: of the recipe.
        steps: tuple of `Step`; the last one is the export.
    """

    name: str
    steps: tuple

    def as_data(self):
        """[{kind: options}, ...], as a YAML file lists them."""
        return [{step.kind: step.options} for step in self.steps]

    def adapted(self, augmentation=None, bfloat16=False):
        """The recipe fitted to a model and a machine; what a step says itself stays.

        Args:
            augmentation: {option: value}, of `AUGMENTATIONS`, for all training steps, or None.
            bfloat16: whether the float trainings compute in bfloat16; `qat`, in tf_keras, cannot.

        Raises:
            RecipeError: an option that does not augment, or a bad value.
        """
        steps = []
        for step in self.steps:
            options = dict(step.options)
            if step.kind in REQUIRED:
                options = {**(augmentation or {}), **options}
            if step.kind in ("finetune", "sparsify", "share") and bfloat16:
                options = {"precision": "mixed_bfloat16", **options}
            steps.append({step.kind: options})
        for name in augmentation or ():
            if name not in AUGMENTATIONS:
                raise RecipeError(f"augmentation: there are {', '.join(AUGMENTATIONS)}. Received: {name!r}")
        checked = _checked([(_plain(step), old.place) for step, old in zip(steps, self.steps)])
        return dataclasses.replace(self, steps=checked)


def load_recipe(source):
    """Reads and checks a recipe.

    Args:
        source: small, fast or safe; the path of a YAML file; a list of steps, `[{"prune": {"ratio": 0.5}}, ...]`; or a
            `Recipe`, which is returned.

    Returns:
        A `Recipe`.

    Raises:
        RecipeError: an unknown step or option (the nearest known one is named), a wrong type or value, steps in an
            order that cannot be; the line is named.
        OSError: the file cannot be read.
    """
    if isinstance(source, Recipe):
        return source
    if not isinstance(source, str | pathlib.Path):
        return Recipe("custom", _checked([(_plain(step), f"step {i}") for i, step in enumerate(source, 1)]))
    if str(source) in SHIPPED:
        path = pathlib.Path(__file__).with_name("recipes") / f"{source}.yaml"
    else:
        path = pathlib.Path(source)
        if not path.is_file():
            near = _nearest(str(source), SHIPPED)
            raise RecipeError(
                f"There is no recipe {str(source)!r}{near}. Shipped: {', '.join(SHIPPED)}; or a YAML file"
            )
    return Recipe(path.stem, _checked(_read_yaml(path)))


@dataclasses.dataclass(frozen=True)
class _At:
    """A value and the line it stands on."""

    value: Any
    line: int


def _read_yaml(path):
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not a text file"
        raise RecipeError(f"{path}{where}: not YAML ({problem})") from error
    steps = [node for key, node in root.value if key.value == "steps"] if isinstance(root, yaml.MappingNode) else []
    if not steps or len(root.value) > 1 or not isinstance(steps[0], yaml.SequenceNode):
        raise RecipeError(f"{path}: a recipe is one list under 'steps:', each step '- kind: {{option: value}}'")
    for node in steps[0].value:
        _check_keys(node, path)
    return [(_construct(node), f"{path}, line {node.start_mark.line + 1}") for node in steps[0].value]


def _construct(node):
    """The value of a YAML node, with line numbers on the values of mappings, two levels deep."""
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    return {
        _scalar(key): _At(
            {_scalar(k): _At(_scalar(v), k.start_mark.line + 1) for k, v in value.value}
            if isinstance(value, yaml.MappingNode)
            else _scalar(value),
            key.start_mark.line + 1,
        )
        for key, value in node.value
    }


def _check_keys(node, path):
    """Refuses mappings, at any depth, with a name twice, or with one that is no word."""
    if not isinstance(node, yaml.MappingNode):
        return
    names = set()
    for key, value in node.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            raise RecipeError(f"{where}: a name is one word, as in 'kind: {{option: value}}'")
        if key.value in names:
            raise RecipeError(f"{where}: {key.value} is given twice")
        names.add(key.value)
        _check_keys(value, path)


def _scalar(node):
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _plain(step):
    """A step given in Python in the form that `_construct` returns, without lines."""
    if not isinstance(step, dict):
        return step
    return {
        kind: _At({name: _At(value, 0) for name, value in options.items()} if isinstance(options, dict) else options, 0)
        for kind, options in step.items()
    }


def _checked(items):
    steps = tuple(_step(item, place) for item, place in items)
    if not steps:
        raise RecipeError("A recipe needs at least one step; the last one is 'export: {precision: int8}'")
    kinds = [step.kind for step in steps]
    for i, step in enumerate(steps):
        if (step.kind == "export") != (i == len(steps) - 1):
            raise RecipeError(f"{step.place}: the last step, and only it, is 'export: {{precision: int8}}'")
        earlier = set(kinds[:i])
        if step.kind in ("prune", "factorize", "finetune") and earlier & set(_LAST):
            raise RecipeError(f"{step.place}: {step.kind} comes before sparsify, share and qat, which it would undo")
        if step.kind in ("prune", "factorize") and "factorize" in earlier:
            raise RecipeError(f"{step.place}: factorize comes at most once, and after all prunings")
        if step.kind in _LAST and earlier & set(_LAST[_LAST.index(step.kind) :]):
            raise RecipeError(f"{step.place}: sparsify comes at most once, then share, then qat at most once")
    precision = steps[-1].options.get("precision", "int8")
    if "qat" in kinds and precision != "int8":
        raise RecipeError(f"{steps[-1].place}: after qat the precision is int8. Received: {precision}")
    return tuple(
        dataclasses.replace(step, options=_preserving(step.options, kinds)) if step.kind == "qat" else step
        for step in steps
    )


def _preserving(options, kinds):
    """The options of a `qat` in which what a step before it made stays, unless they say otherwise."""
    options = dict(options)
    if "share" in kinds:
        options.setdefault("preserve_sharing", True)
    if "sparsify" in kinds and not options.get("preserve_sharing"):  # equal weights that stay equal keep zeros, too
        options.setdefault("preserve_sparsity", True)
    return options


def _step(item, place):
    if not isinstance(item, dict) or len(item) != 1:
        raise RecipeError(
            f"{place}: a step is written 'kind: {{option: value}}', with one kind. Received: {_short(item)}"
        )
    ((kind, at),) = item.items()
    if kind not in OPTIONS:
        raise RecipeError(f"{place}: unknown step {kind!r}{_nearest(kind, OPTIONS)}. There are {', '.join(OPTIONS)}")
    given = {} if at.value is None else at.value
    if not isinstance(given, dict):
        raise RecipeError(f"{place}: {kind} takes options, '{kind}: {{option: value}}'. Received: {_short(given)}")
    options = {}
    for name, value in given.items():
        where = _where(place, value.line)
        if name not in OPTIONS[kind]:
            known = OPTIONS[kind]
            raise RecipeError(
                f"{where}: {kind} has no option {name!r}{_nearest(name, known)}. It has {', '.join(known)}"
            )
        options[name] = _typed(value.value, *OPTIONS[kind][name], f"{where}: {kind}.{name}")
    step = Step(kind, options, place)
    for name in REQUIRED.get(kind, ()):
        if name not in options:
            raise RecipeError(f"{place}: {kind} needs {name}, {OPTIONS[kind][name][1]}")
    _check_values(step, {name: _where(place, value.line) for name, value in given.items()})
    return step


def _check_values(step, places):
    options = step.options
    if step.kind == "prune":
        _check_prune(options, places, step.place)
    elif step.kind == "factorize":
        _check_factorize(options, places, step.place)
    elif step.kind == "export":
        _check_choice("precision", options.get("precision", "int8"), PRECISIONS, places.get("precision", step.place))
    else:
        try:
            step.training()
        except ValueError as error:
            guilty = next((name for name in options if str(error).startswith(name)), None)
            raise RecipeError(f"{places.get(guilty, step.place)}: {step.kind}: {error}") from error
    if step.kind == "qat" and options.get("precision", "float32") != "float32":
        raise RecipeError(
            f"{places['precision']}: qat computes in tf_keras, in float32. Received: {options['precision']!r}"
        )
    if step.kind == "share":
        from tfcompress.quantization.weight_sharing import check_clusters

        try:
            check_clusters(options["clusters"])
        except ValueError as error:
            raise RecipeError(f"{places['clusters']}: {error}") from error
    if step.kind == "sparsify":
        if not 0 <= options["sparsity"] < 1:
            raise RecipeError(f"{places['sparsity']}: sparsity must be in [0, 1). Received: {options['sparsity']}")
        allocations = ("lamp", "uniform")
        _check_choice("allocation", options.get("allocation", "lamp"), allocations, places.get("allocation"))


def _check_prune(options, places, place):
    from tfcompress.criteria import REGISTRY

    targets = [name for name in ("ratio", "macs_reduction", "params_reduction") if name in options]
    both = targets == ["macs_reduction", "params_reduction"]
    if (len(targets) > 1 and not both) or not (targets or "ratios" in options):
        raise RecipeError(
            f"{place}: prune needs exactly one of ratio, macs_reduction, params_reduction, or both reductions. "
            f"Received: {', '.join(targets) or 'none'}"
        )
    if both and options.get("scope", "layer") != "layer":
        raise RecipeError(f"{places['scope']}: two reductions at once need scope layer. Received: {options['scope']!r}")
    if not targets and options.get("scope") == "sensitivity":
        raise RecipeError(f"{places['scope']}: scope sensitivity needs a ratio or a reduction that it is to spend")
    for name in targets:
        _check_fraction(name, options, places)
    for layer, value in options.get("ratios", {}).items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise RecipeError(
                f"{places['ratios']}: ratios of {layer!r} must be a fraction in [0, 1). Received: {value!r}"
            )
    if options.get("round_to", 1) < 1:
        raise RecipeError(f"{places['round_to']}: round_to must be a positive integer. Received: {options['round_to']}")
    usable = [name for name in REGISTRY if name != "taylor"]  # taylor needs data: the Python API takes it
    _check_choice("criterion", options.get("criterion", "l1"), usable, places.get("criterion"))
    _check_choice("scope", options.get("scope", "layer"), _SCOPES, places.get("scope"))


def _check_factorize(options, places, place):
    from tfcompress.low_rank.decompose import SCHEMES

    targets = [name for name in ("energy", "macs_reduction", "params_reduction") if name in options]
    if len(targets) != 1:
        raise RecipeError(
            f"{place}: factorize needs exactly one of energy, macs_reduction, params_reduction. "
            f"Received: {', '.join(targets) or 'none'}"
        )
    _check_fraction(targets[0], options, places)
    if "scheme" in options:
        _check_choice("scheme", options["scheme"], SCHEMES, places["scheme"])


def _check_fraction(name, options, places):
    if not 0 < options[name] < 1:
        raise RecipeError(f"{places[name]}: {name} must be in (0, 1). Received: {options[name]}")


def _check_choice(name, value, choices, place):
    if value not in choices:
        near = _nearest(value, choices)
        raise RecipeError(f"{place}: {name} must be one of {', '.join(choices)}{near}. Received: {value!r}")


def _typed(value, kind, expected, where):
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"{where} must be {expected}. Received: {_short(value)} ({type(value).__name__})")
    return value


def _where(place, line):
    return f"{place.rpartition(', line ')[0]}, line {line}" if line else place


def _nearest(word, known):
    near = difflib.get_close_matches(str(word), list(known), 1, 0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _short(value):
    text = repr(dict.fromkeys(value, "...") if isinstance(value, dict) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
