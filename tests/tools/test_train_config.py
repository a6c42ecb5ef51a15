"""Recipes: what is accepted, and the one line that a wrong key or value gets."""

import pytest
import timm
import yaml
from timm.optim import list_optimizers
from training_runs import write_recipe

from attnzoo.tools import main
from attnzoo.tools.cli import UserError
from attnzoo.tools.training.config import RECIPES, as_tree, differing_keys, load_recipe

BUNDLED = sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_recipe_is_valid_and_its_model_exists(name):
    recipe = load_recipe(name)
    assert name in (f"{recipe.model.name}_in1k", f"{recipe.model.name}_digits")
    assert timm.is_model(recipe.model.name)
    assert recipe.optimizer.opt in list_optimizers()


def test_published_settings_reach_the_variant():
    recipe = load_recipe("dinat_tiny_in1k")
    assert (recipe.epochs, recipe.scheduler.warmup_epochs, recipe.optimizer.lr) == (300, 20, 1e-3)
    assert (recipe.data.mixup, recipe.data.cutmix, recipe.model.drop_path_rate) == (0.8, 1.0, 0.2)
    assert load_recipe("biformer_small_in1k").scheduler.warmup_epochs == 5


def test_digits_are_not_mirrored():
    assert load_recipe("biformer_nano_digits").data.hflip == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimzer.lr=1", "unknown key optimzer; did you mean optimizer"),
        ("optimizer.leraning_rate=1", "unknown key optimizer.leraning_rate"),
        ("data.mixupp=1", "unknown key data.mixupp; did you mean mixup"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast'; a number is needed"),
        ("optimizer.lr=-1", "optimizer.lr is -1; it must be at least 0"),
        ("optimizer.lr=.nan", "optimizer.lr is nan; it must be at least 0"),
        ("optimizer.lr=.inf", "optimizer.lr is inf"),
        ("data.hflip=2", "data.hflip is 2; it must be between 0 and 1"),
        ("epochs=2.5", "epochs is 2.5; a whole number is needed"),
        ("epochs=true", "epochs is True; a whole number is needed"),
        ("batch_size=0", "batch_size is 0; it must be at least 1"),
        ("amp_dtype=bfloat", "amp_dtype is 'bfloat'; one of none, bfloat16, float16 is needed; did you mean bfloat16"),
        ("data.scale=[0.5]", "data.scale is [0.5]; a list of 2 numbers is needed"),
        ("data.scale=[0.9, 0.1]", "data.scale is [0.9, 0.1]; the smaller number comes first"),
        ("data.limit=none", "data.limit is 'none'; a whole number or null is needed"),
        ("model=test_vit", "model must be a set of keys, not 'test_vit'"),
        ("batch_size=15", "batch_size is 15; Mixup and CutMix need an even one"),
        ("scheduler.warmup_epochs=3", "scheduler.warmup_epochs is 3; fewer than epochs (3) are needed"),
    ],
)
def test_wrong_override_is_one_line_with_its_path(tmp_path, override, message):
    with pytest.raises(UserError) as error:
        load_recipe(write_recipe(tmp_path), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_override_without_value_shows_how_to_write_it(tmp_path):
    with pytest.raises(UserError, match="write it as key=value"):
        load_recipe(write_recipe(tmp_path), ["epochs"])


def test_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    assert load_recipe(write_recipe(tmp_path), ["optimizer.lr=1e-3"]).optimizer.lr == 1e-3


def test_missing_required_key_says_what_it_is(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: {source: digits}")
    with pytest.raises(UserError, match="model.name is missing: timm name of the model"):
        load_recipe(path)


def test_base_is_merged_key_by_key(tmp_path):
    write_recipe(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text("_base_: tiny.yaml\noptimizer: {weight_decay: 0.3}")
    recipe = load_recipe(child)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.002, 0.3)


def test_base_of_a_base_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("_base_: b.yaml")
    (tmp_path / "b.yaml").write_text("_base_: c.yaml")
    with pytest.raises(UserError, match="one level is allowed"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_file_that_is_no_recipe_is_named(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="bad.yaml"):
        load_recipe(path)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean dinat_nano_digits"):
        load_recipe("dinat_nano_digit")


def test_printed_config_reads_back_as_the_same_recipe(tmp_path, capsys):
    assert main.main(["train", str(write_recipe(tmp_path)), "--print-config", "--epochs", "7", "--lr", "1e-4"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert as_tree(load_recipe(path)) == tree
    assert (tree["epochs"], tree["optimizer"]["lr"]) == (7, 1e-4)


def test_only_keys_that_change_the_weights_tell_runs_apart(tmp_path):
    recipe = write_recipe(tmp_path)
    one = as_tree(load_recipe(recipe))
    two = as_tree(
        load_recipe(recipe, ["data.workers=3", "checkpoint.keep=9", "optimizer.lr=0.5", "model.kwargs.depth=2"])
    )
    assert differing_keys(one, two) == ["model.kwargs.depth", "optimizer.lr"]


def test_help_lists_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "--help"])
    text = capsys.readouterr().out
    assert "optimizer.layer_decay" in text
    assert "epochs, warm-up included (300)" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=test_vitt", "model.name: no model is named test_vitt; did you mean test_vit"),
        ("model.kwargs.depht=3", "model.kwargs: test_vit cannot be built"),
        ("optimizer.opt=adamww", "no optimizer 'adamww'; did you mean adamw"),
        ("data.source=no/such/folder", "data.source: 'no/such/folder' is neither digits, nor a file or folder"),
        ("model.num_classes=7", "'digits' has 10 classes, model.num_classes is 7"),
        ("batch_size=128", "one update takes 128 images, the training split has 96"),
        ("data.train_split=tain", "digits has no split 'tain'"),
    ],
)
def test_what_only_building_can_find_is_one_line_and_status_2(tmp_path, capsys, override, message):
    recipe = write_recipe(tmp_path)
    assert main.main(["train", str(recipe), "--cpu", "--output", str(tmp_path / "o"), "--set", override]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
