"""Recipes: what is accepted, and the one line that a wrong key or value gets."""

from itertools import pairwise

import pytest
import timm
import yaml
from timm.optim import list_optimizers
from training_runs import write_recipe

from attnzoo.tools import main
from attnzoo.tools.cli import UserError
from attnzoo.tools.training.config import RECIPES, as_tree, differing_keys, load_recipe
from attnzoo.tools.training.log import Log
from attnzoo.tools.training.run import prepare_output

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
        ("scheduler.decay_epochs=0", "scheduler.decay_epochs is 0; it must be at least 0.001"),
        ("data.mean=[0.5, 0.5]", "data.mean has 2 numbers; 1 or 3 are needed, one per channel"),
        ("data.mean=[]", "data.mean has 0 numbers; 1 or 3 are needed"),
        ("data.mean=[123, 116, 103]", "data.mean is 123; it must be between 0 and 1"),
        ("data.std=[0, 0, 0]", "data.std is 0; it must be between 0.001 and 1"),
        ("data.color_jitter=1e300", "data.color_jitter is 1e+300; it must be between 0 and 100"),
        ("data.img_size=100000", "data.img_size is 100000; it must be between 1 and 8192"),
        ("model.kwargs=&k {a: *k}", "the value is not YAML"),
        ("model.kwargs." + 2000 * "a." + "a=1", "no key has 2003 parts"),
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


ENDLESS = "model: {name: test_vit, kwargs: &k {a: *k}}\ndata: {source: digits}\n"
# Nine lists of nine of the list before: 9^9 values.
VAST = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in pairwise("abcdefghij"))


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00", ENDLESS, VAST, "a: " + 900 * "[" + 900 * "]"])
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
        ("model.name=test_vit.nosuch", "model.name: test_vit has no weights with the tag nosuch"),
        ("model.kwargs.depht=3", "model.kwargs: test_vit cannot be built"),
        ("model.kwargs={1: 2}", "model.kwargs: test_vit cannot be built"),
        ("model.kwargs.patch_size=0", "model.kwargs: test_vit cannot be built"),
        ("model.kwargs.num_heads=7", "model.kwargs: test_vit cannot be built"),
        ("model.num_classes=99999999999", "model.kwargs: test_vit cannot be built"),
        ("model.kwargs.num_classes=5", "model.kwargs takes arguments of the model, and num_classes is none; use model"),
        ("model.kwargs.checkpoint_path=x.pth", "model.kwargs takes arguments of the model, and checkpoint_path is"),
        ("data.aa=bogus", "data.aa: 'bogus' is no policy, as rand-m9-mstd0.5-inc1 (Unknown AA policy bogus)"),
        ("data.source=torch/cifar10", "data.root: torch/cifar10 needs the folder that holds its files"),
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


@pytest.mark.parametrize("name", ["metrics.csv", "curve.png", "model.safetensors", "recipe.yaml"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_a_folder_in_a_files_place_is_refused_before_the_work(tmp_path, capsys, monkeypatch, name, options):
    monkeypatch.setattr("attnzoo.tools.training.run.Trainer", None)
    (tmp_path / "o" / name).mkdir(parents=True)
    words = ["train", str(write_recipe(tmp_path)), "--cpu", "--output", str(tmp_path / "o"), *options]
    assert main.main(words) == 2
    assert f"{tmp_path / 'o' / name} is a folder, where the run has a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_file_in_a_folders_place_is_refused_before_the_work(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("attnzoo.tools.training.run.Trainer", None)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / name).touch()
    assert main.main(["train", str(write_recipe(tmp_path)), "--cpu", "--output", str(tmp_path / "o")]) == 2
    assert f"{tmp_path / 'o' / name} is a file, where the run has a folder" in capsys.readouterr().err


def test_events_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "tensorboard").symlink_to(tmp_path / "nowhere" / "below")
    with pytest.raises(UserError, match="cannot write in "):
        Log(tmp_path, main=True, tensorboard=True, first_epoch=1, updates=0)


def test_overwrite_removes_whatever_lies_in_the_runs_places(tmp_path):
    output, recipe = tmp_path / "o", write_recipe(tmp_path)
    for folder in ("metrics.csv", "curve.png"):
        (output / folder / "more").mkdir(parents=True)
    for file in ("checkpoints", "tensorboard"):
        (output / file).touch()
    (output / "recipe.yaml").write_text("1: 2")
    prepare_output(output, load_recipe(recipe), resume=False, overwrite=True)
    assert [path.name for path in output.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("text", "message"), [("a: &a [*a]", "recipe.yaml cannot be read"), ("1: 2", "holds a run of another recipe")]
)
def test_an_edited_recipe_in_the_output_is_one_line(tmp_path, text, message):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        prepare_output(tmp_path / "o", load_recipe(write_recipe(tmp_path)), resume=True, overwrite=False)
