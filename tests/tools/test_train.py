"""A whole run: what it leaves behind, what it refuses, and what an update computes."""

import os

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from training_runs import rows, train, write_recipe

from attnzoo.tools.training.build import build_optimizer
from attnzoo.tools.training.config import load_recipe
from attnzoo.tools.training.curve import draw_loss, new_figure
from attnzoo.tools.training.log import read_metrics
from attnzoo.weights import load_checkpoint, read_checkpoint


def test_a_run_leaves_metrics_curve_checkpoints_and_the_best_model(tmp_path, capsys):
    out = tmp_path / "o"
    assert train(write_recipe(tmp_path), out) == 0
    table = rows(out)
    assert [(row["epoch"], row["updates"]) for row in table] == [("1", "6"), ("2", "12"), ("3", "18")]
    best = max(float(row["val_top1"]) for row in table)
    text = capsys.readouterr().out
    assert f"best top-1 {best:.2f} %" in text
    assert "epoch 3/3" in text

    model = timm.create_model("test_vit", num_classes=10, img_size=32)
    load_checkpoint(model, out / "model.safetensors")
    with safe_open(out / "model.safetensors", "pt") as file:
        assert float(file.metadata()["val_top1"]) == pytest.approx(best, abs=1e-4)
        assert file.metadata()["model"] == "test_vit"
    with Image.open(out / "curve.png") as picture:
        assert picture.width > 800
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        "epoch-0002-update-000000",
        "epoch-0003-update-000000",
    ]


@pytest.mark.parametrize("epochs", [1, 2, 5, 40])
def test_the_curve_counts_whole_epochs(epochs):
    axes = new_figure((9, 3.6)).subplots()
    draw_loss(axes, [{"epoch": 1.0 + i, "train_loss": 2.0, "val_loss": 2.5} for i in range(epochs)])
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert shown == [round(tick) for tick in shown] != []


def test_training_learns(tmp_path):
    model = {"name": "biformer_nano", "num_classes": 10}
    upright = {"source": "digits", "img_size": 32, "limit": 400, "workers": 0, "scale": [0.8, 1.0], "hflip": 0}
    recipe = write_recipe(tmp_path, model=model, data=upright, ema={})
    assert train(recipe, tmp_path / "o") == 0
    table = read_metrics(tmp_path / "o" / "metrics.csv")
    assert table[-1]["train_loss"] < table[0]["train_loss"] - 0.3
    assert table[-1]["val_top1"] > 60


def test_tensorboard_events_are_written(tmp_path):
    assert train(write_recipe(tmp_path, epochs=1, tensorboard=True), tmp_path / "o") == 0
    assert list((tmp_path / "o" / "tensorboard").glob("events.*"))


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    recipe = write_recipe(tmp_path, epochs=1)
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train(recipe, tmp_path / name, "--seed", seed) == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")


def test_folder_of_another_recipe_is_refused_and_left_alone(tmp_path, capsys):
    recipe, out = write_recipe(tmp_path, epochs=1), tmp_path / "o"
    assert train(recipe, out) == 0
    before = (out / "metrics.csv").read_bytes()
    assert train(recipe, out, "--lr", "0.5") == 2
    assert "optimizer.lr is 0.002 there, 0.5 here" in capsys.readouterr().err
    assert train(recipe, out, "--lr", "0.5", "--resume") == 2
    assert train(recipe, out) == 2
    assert "give --resume to go on, or --overwrite" in capsys.readouterr().err
    assert train(recipe, out, "--resume", "--overwrite") == 2
    assert "--resume and --overwrite exclude each other" in capsys.readouterr().err
    assert (out / "metrics.csv").read_bytes() == before
    assert train(recipe, out, "--lr", "0.5", "--overwrite") == 0
    assert (out / "metrics.csv").read_bytes() != before


def test_what_cannot_be_built_costs_no_run_that_is_there(tmp_path, capsys):
    recipe, out = write_recipe(tmp_path, epochs=1), tmp_path / "o"
    assert train(recipe, out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for option in ("data.source=nowhere", "model.kwargs={nope: 1}"):
        assert train(recipe, out, "--set", option, "--overwrite") == 2
        assert option.partition("=")[0] in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_cannot_be_built_leaves_no_recipe_that_the_mended_one_differs_from(tmp_path):
    recipe, out = write_recipe(tmp_path, epochs=1), tmp_path / "o"
    assert train(recipe, out, "--data", "nowhere") == 2
    assert list(out.iterdir()) == []
    assert train(recipe, out) == 0


def test_unwritable_output_is_said_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(write_recipe(tmp_path), tmp_path / "file" / "o") == 2
    captured = capsys.readouterr()
    assert "cannot make the output folder" in captured.err
    assert "epoch" not in captured.out


def test_accumulation_equals_the_big_batch(tmp_path):
    plain = {"data__mixup": 0, "data__re_prob": 0.5, "model__drop_path_rate": 0.0, "epochs": 2, "ema": {}}
    recipe = write_recipe(tmp_path, optimizer={"opt": "sgd", "lr": 0.05}, **plain)
    states = []
    for name, sizes in (("big", ("16", "1")), ("small", ("4", "4"))):
        options = ("--set", f"batch_size={sizes[0]}", "--set", f"grad_accum={sizes[1]}")
        assert train(recipe, tmp_path / name, *options) == 0
        checkpoint = tmp_path / name / "checkpoints" / "epoch-0002-update-000000"
        states.append(read_checkpoint(checkpoint / "model.safetensors"))
    start = timm.create_model("test_vit", num_classes=10, img_size=32).state_dict()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(states[0][key], start[key], atol=1e-2) for key in start)


def test_layer_decay_gives_deeper_layers_smaller_rates(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["optimizer.layer_decay=0.5", "optimizer.weight_decay=0.1"])
    model = timm.create_model("test_vit", num_classes=10)
    optimizer = build_optimizer(recipe.optimizer, model, 16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert groups["head.weight"]["lr_scale"] == 1.0
    assert groups["patch_embed.proj.weight"]["lr_scale"] < groups["blocks.5.mlp.fc1.weight"]["lr_scale"] < 1.0
    assert groups["head.weight"]["weight_decay"] == 0.1
    assert groups["head.bias"]["weight_decay"] == 0.0


def test_rate_scales_with_the_images_per_update(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["optimizer.lr=0.001", "optimizer.lr_base_size=1024"])
    optimizer = build_optimizer(recipe.optimizer, timm.create_model("test_vit"), 256)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.00025)


def test_export_type_is_the_recipes(tmp_path):
    assert train(write_recipe(tmp_path, epochs=1, export_dtype="float16"), tmp_path / "o") == 0
    state = read_checkpoint(tmp_path / "o" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_autocast_trains(tmp_path, fresh_accelerate):
    assert train(write_recipe(tmp_path, epochs=1, amp_dtype="bfloat16"), tmp_path / "o") == 0
    state = read_checkpoint(tmp_path / "o" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps one precision per process: forget it before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
