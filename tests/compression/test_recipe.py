"""Recipes: what the shipped ones say, and every mistake named with its line."""

import pytest

from tfcompress.compression.recipe import SHIPPED, RecipeError, load_recipe


def write(folder, *steps):
    path = folder / "mine.yaml"
    path.write_text("# a comment\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_end_in_int8(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.steps[-1].kind == "export" and recipe.steps[-1].options == {"precision": "int8"}
    assert [step.kind for step in recipe.steps].count("qat") == 1
    assert ("prune" in [step.kind for step in recipe.steps]) == (name != "safe")


def test_yaml_and_python_mean_the_same(tmp_path):
    path = write(
        tmp_path,
        "prune: {criterion: l2, macs_reduction: 0.5, skip: [conv1]}",
        "finetune: {epochs: 2, learning_rate: 1e-3, distill: true}",
        "export:",
    )
    steps = [
        {"prune": {"criterion": "l2", "macs_reduction": 0.5, "skip": ["conv1"]}},
        {"finetune": {"epochs": 2, "learning_rate": 0.001, "distill": True}},
        {"export": {}},
    ]
    recipe = load_recipe(path)
    assert recipe.name == "mine" and recipe.as_data() == steps == load_recipe(steps).as_data()
    training = recipe.steps[1].training()
    assert (training.epochs, training.learning_rate, training.batch_size) == (2, 0.001, 128)


EXPORT = "export: {precision: int8}"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["prun: {ratio: 0.5}", EXPORT], r"line 3: unknown step 'prun' \(did you mean 'prune'\?\)"),
        (["prune: {ratoi: 0.5}", EXPORT], r"line 3: prune has no option 'ratoi' \(did you mean 'ratio'\?\)"),
        (["prune:\n      criterion: l2\n      ratio: half", EXPORT], r"line 5: prune.ratio must be a fraction"),
        (["prune: {ratio: true}", EXPORT], r"line 3: prune.ratio must be .* Received: True \(bool\)"),
        (["prune: {round_to: 2.5, ratio: 0.5}", EXPORT], "round_to must be a positive integer"),
        (["prune: {round_to: 0, ratio: 0.5}", EXPORT], "round_to must be a positive integer"),
        (["prune: {ratio: 1.5}", EXPORT], r"line 3: ratio must be in \(0, 1\). Received: 1.5"),
        (["prune: {ratio: 0.5, macs_reduction: 0.5}", EXPORT], "exactly one of .* Received: ratio, macs_reduction"),
        (["prune: {macs_reduction: 0.5, params_reduction: 0.5, scope: global}", EXPORT], "need scope layer"),
        (["prune: {ratios: {conv: 0.5}, scope: sensitivity}", EXPORT], "needs a ratio or a reduction"),
        (['prune: {ratios: {conv: "0.5"}}', EXPORT], "ratios of 'conv' must be a fraction"),
        (["prune: {criterion: l2}", EXPORT], "exactly one of .* Received: none"),
        (["prune: {criterion: l3, ratio: 0.5}", EXPORT], r"criterion must be one of l1, .* \(did you mean 'l"),
        (["prune: {criterion: taylor, ratio: 0.5}", EXPORT], "criterion must be one of"),
        (["factorize: {scheme: spatial}", EXPORT], "line 3: factorize needs exactly one of energy, .* Received: none"),
        (["factorize: {energy: 0.5, macs_reduction: 0.5}", EXPORT], "Received: energy, macs_reduction"),
        (["factorize: {energy: 1}", EXPORT], r"line 3: energy must be in \(0, 1\). Received: 1.0"),
        (["factorize: {energy: 0.5, scheme: tucker}", EXPORT], "scheme must be one of spatial, channel"),
        (["factorize: {energy: 0.5}", "prune: {ratio: 0.5}", EXPORT], "line 4: factorize comes at most once"),
        (["finetune: {learning_rate: 0.1}", EXPORT], "line 3: finetune needs epochs"),
        (["finetune: {epochs: 0}", EXPORT], "line 3: finetune: epochs must be at least 1"),
        (["finetune: {epochs: 1, schedule: cosinus}", EXPORT], "schedule must be one of cosine"),
        (["sparsify: {epochs: 1, sparsity: 1.0}", EXPORT], r"sparsity must be in \[0, 1\)"),
        (["share: {epochs: 1}", EXPORT], "line 3: share needs clusters, an integer from 2 to 256"),
        (["share: {epochs: 1, clusters: 1}", EXPORT], r"line 3: clusters must be an integer .*\. Received: 1"),
        (
            ["share: {epochs: 1, clusters: 4}", "finetune: {epochs: 1}", EXPORT],
            "line 4: finetune comes before sparsify",
        ),
        (["share: {epochs: 1, clusters: 4}", "sparsify: {epochs: 1, sparsity: 0.5}", EXPORT], "line 4: sparsify comes"),
        (["qat: {epochs: 1}", "export: {precision: float16}"], "line 4: after qat the precision is int8"),
        (["qat: {epochs: 1}", "prune: {ratio: 0.5}", EXPORT], "line 4: prune comes before sparsify, share and qat"),
        (["qat: {epochs: 1}", "qat: {epochs: 1}", EXPORT], "line 4: sparsify comes at most once"),
        (["qat: {epochs: 1}"], "line 3: the last step, and only it, is 'export"),
        ([EXPORT, EXPORT], "line 3: the last step, and only it"),
        (["export: {precision: int4}"], "precision must be one of float32"),
        (["export: int8"], "export takes options"),
        (["prune: {ratio: 0.5, ratio: 0.1}", EXPORT], "line 3: ratio is given twice"),
        (["prune: {ratio: 0.5}\n    prune: {ratio: 0.1}", EXPORT], "line 4: prune is given twice"),
        (["prune: {[ratio]: 0.5}", EXPORT], "line 3: a name is one word"),
        (["prune: {<<: {ratio: 0.5}}", EXPORT], "line 3: a name is one word"),
        (["just words", EXPORT], "line 3: a step is written"),
        (["prune: {ratio: 0.5", EXPORT], "line 4: not YAML"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, steps, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, *steps))


def test_other_mistakes(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe 'smal' \(did you mean 'small'\?\)"):
        load_recipe("smal")
    with pytest.raises(RecipeError, match="step 1: unknown step 'shrink'"):
        load_recipe([{"shrink": {}}])
    with pytest.raises(RecipeError, match=r"step 1: qat computes in tf_keras, in float32\. Received: 'mixed_bfloat16'"):
        load_recipe([{"qat": {"epochs": 1, "precision": "mixed_bfloat16"}}, {"export": {}}])
    with pytest.raises(RecipeError, match="at least one step"):
        load_recipe([])
    (tmp_path / "list.yaml").write_text("- prune: {ratio: 0.5}\n")
    with pytest.raises(RecipeError, match="one list under 'steps:'"):
        load_recipe(tmp_path / "list.yaml")


def test_quantization_keeps_what_the_steps_before_it_made_unless_told_otherwise():
    sparsify, share = {"sparsify": {"epochs": 1, "sparsity": 0.5}}, {"share": {"epochs": 1, "clusters": 4}}

    def kept(*before, **options):
        recipe = load_recipe([*before, {"qat": {"epochs": 1, **options}}, {"export": {}}]).adapted({"flip": True})
        return {name: value for name, value in recipe.steps[-2].options.items() if name.startswith("preserve")}

    assert kept() == {}
    assert kept(sparsify) == {"preserve_sparsity": True}
    assert kept(share) == kept(sparsify, share) == {"preserve_sharing": True}
    assert kept(sparsify, preserve_sparsity=False) == {"preserve_sparsity": False}
    assert kept(sparsify, share, preserve_sharing=False) == {"preserve_sharing": False, "preserve_sparsity": True}


def test_augmentation_goes_to_every_training_step():
    recipe = load_recipe("small").adapted({"crop_padding": 4, "flip": True})
    got = {step.kind: (step.options.get("crop_padding"), step.options.get("flip")) for step in recipe.steps}
    assert got == {"prune": (None, None), "finetune": (4, True), "qat": (4, True), "export": (None, None)}
    assert load_recipe("small").adapted() == load_recipe("small")
    own = load_recipe([{"qat": {"epochs": 1, "flip": False}}, {"export": {}}]).adapted({"flip": True})
    assert own.steps[0].options["flip"] is False
    with pytest.raises(
        RecipeError, match=r"there are crop_padding, flip, rotation, scaling, cutout, cutmix\. Received: 'epochs'"
    ):
        recipe.adapted({"epochs": 3})
    with pytest.raises(RecipeError, match=r"finetune\.crop_padding"):
        load_recipe("small").adapted({"crop_padding": "four"})


def test_bfloat16_goes_to_the_float_trainings_alone():
    recipe = load_recipe("small").adapted(bfloat16=True)
    got = {step.kind: step.options.get("precision") for step in recipe.steps}
    assert got == {"prune": None, "finetune": "mixed_bfloat16", "qat": None, "export": "int8"}
    steps = [{"sparsify": {"epochs": 1, "sparsity": 0.5}}, {"share": {"epochs": 1, "clusters": 4}}, {"export": {}}]
    for step in load_recipe(steps).adapted(bfloat16=True).steps[:2]:
        assert step.options["precision"] == "mixed_bfloat16"
    own = load_recipe([{"finetune": {"epochs": 1, "precision": "float32"}}, {"export": {}}]).adapted(bfloat16=True)
    assert own.steps[0].options["precision"] == "float32"
