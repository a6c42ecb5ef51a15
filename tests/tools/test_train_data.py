"""Batches and augmentation depend on the place in the run alone."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attnzoo.tools.cli import UserError
from attnzoo.tools.data.digits import digits_dataset
from attnzoo.tools.training import schema
from attnzoo.tools.training.data import EpochBatches, SeededSamples, build_datasets, build_transforms
from attnzoo.tools.training.evaluate import evaluate

RECIPE = schema.Recipe(schema.Model("test_vit"), schema.Data("digits"), seed=5)
DATA = schema.Data("digits", img_size=32, degrees=10, re_prob=0.5, aa="rand-m9-mstd0.5-inc1")


def batches(size=50, epoch=0, start=0, batch_size=4, grad_accum=2, rank=0, world=1, recipe=RECIPE):
    return EpochBatches(
        size, recipe, epoch, start, batch_size=batch_size, grad_accum=grad_accum, rank=rank, world=world
    )


def updates(batches_of_ranks, grad_accum):
    """The set of sample keys of each update, over all processes."""
    lists = [list(one) for one in batches_of_ranks]
    count = len(lists[0]) // grad_accum
    return [
        {key for one in lists for batch in one[u * grad_accum : (u + 1) * grad_accum] for key in batch}
        for u in range(count)
    ]


def test_an_epoch_has_each_sample_once_and_only_whole_updates():
    keys = [key for batch in batches() for key in batch]
    assert len(keys) == len(set(keys)) == 48
    assert {index for _, index, _ in keys} < set(range(50))
    assert {epoch for epoch, _, _ in keys} == {0}


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(epoch, seed):
        recipe = schema.Recipe(RECIPE.model, RECIPE.data, seed=seed)
        return [index for batch in batches(epoch=epoch, recipe=recipe) for _, index, _ in batch]

    assert order(0, 5) == order(0, 5)
    assert len({tuple(order(epoch, seed)) for epoch in (0, 1) for seed in (5, 6)}) == 4


@pytest.mark.parametrize(("batch_size", "grad_accum", "world"), [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4)])
def test_an_update_sees_the_same_images_however_it_is_cut(batch_size, grad_accum, world):
    cut = [batches(batch_size=batch_size, grad_accum=grad_accum, rank=rank, world=world) for rank in range(world)]
    assert updates(cut, grad_accum) == updates([batches()], 2)


def test_beginning_in_mid_epoch_gives_the_rest_of_the_epoch():
    assert list(batches(start=4)) == list(batches())[8:]
    assert len(batches(start=4)) == 4


def test_repeated_augmentation_brings_each_drawn_image_so_many_times():
    recipe = schema.Recipe(RECIPE.model, schema.Data("digits", aug_repeats=3), seed=5)
    keys = [key for batch in batches(size=48, recipe=recipe) for key in batch]
    assert len(set(keys)) == 48
    assert len({index for _, index, _ in keys}) == 16


def test_augmentation_of_a_sample_does_not_depend_on_what_came_before():
    train, _ = build_transforms(DATA, nn.Identity())
    samples = SeededSamples(digits_dataset("train", train), seed=1)
    first = samples[(2, 7, 0)][0]
    samples[(0, 3, 0)]
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(samples[(2, 7, 0)][0], first)
    others = [samples[key][0] for key in ((3, 7, 0), (2, 7, 1))]
    assert not any(torch.equal(other, first) for other in others)


def test_validation_has_no_randomness():
    _, val = build_transforms(DATA, nn.Identity())
    image = digits_dataset("validation")[0][0]
    assert torch.equal(val(image), val(image))
    assert val(image).shape == (3, 32, 32)


def test_image_folder_is_read_by_split_and_limit_spreads_over_classes(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for shade, name in enumerate(("a", "b")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 24), (90 * shade, number, 0)).save(folder / f"{number}.png")
    train, val = build_datasets(schema.Data(str(tmp_path), img_size=16, limit=4), nn.Identity(), 2)
    assert (len(train), len(val)) == (4, 4)
    assert [train[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert train[0][0].shape == (3, 16, 16)


def test_folder_without_images_is_said_at_once(tmp_path):
    with pytest.raises(UserError, match="data.source"):
        build_datasets(schema.Data(str(tmp_path), img_size=16), nn.Identity(), 2)


def folder_with_a_broken_image(root, truncated):
    for split in ("train", "validation"):
        for label, grey in (("a", 0), ("b", 255)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (40, 36), (grey,) * 3).save(folder / f"{number}.png")
    for name in truncated:
        file = root / "validation" / name
        file.write_bytes(file.read_bytes()[:40])
    return root


class BrightIsB(nn.Module):
    """Wrong for every dark image: a dark substitute for a bright one would show in the score."""

    pretrained_cfg = {"input_size": (3, 32, 32)}

    def forward(self, images):
        return torch.tensor([0.0, 1.0]).expand(len(images), 2)


def validation(root):
    data = schema.Data(str(root), img_size=32, train_split="train", val_split="validation")
    return build_datasets(data, BrightIsB(), num_classes=2)[1]


def score(dataset):
    accelerator = SimpleNamespace(
        process_index=0, num_processes=1, device=torch.device("cpu"), autocast=contextlib.nullcontext
    )
    return evaluate(BrightIsB(), dataset, accelerator, batch_size=4, workers=0)


def test_validation_leaves_out_what_cannot_be_read(tmp_path, caplog):
    broken = folder_with_a_broken_image(tmp_path, ["b/0.png"])
    _, top1, _ = score(validation(broken))
    assert top1 == pytest.approx(100 * 2 / 5)
    assert "b/0.png cannot be read and is left out" in caplog.text


def test_validation_of_nothing_readable_is_an_error(tmp_path):
    broken = folder_with_a_broken_image(tmp_path, [f"{label}/{number}.png" for label in "ab" for number in range(3)])
    with pytest.raises(UserError, match="no image of the validation split can be read"):
        score(validation(broken))
