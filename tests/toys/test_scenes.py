"""Toy scenes: what is pasted, where it comes from, and that a seed decides all of it."""

import numpy as np
import pytest

from attnzoo.tools.cli import UserError
from attnzoo.tools.data import photographs
from attnzoo.tools.data.photographs import PHOTOGRAPHS, photograph, split_photographs
from attnzoo.tools.data.toys import DIGITS_PER_SCENE, SPLITS, ToyScenes


@pytest.fixture(scope="module")
def scenes() -> list:
    return [ToyScenes(split, seed=3)[index] for split in SPLITS for index in range(24)]


@pytest.mark.parametrize("seed", [0, 1, 2, 17])
def test_no_photograph_is_in_both_splits(seed: int) -> None:
    split = split_photographs(seed)
    assert not set(split["train"]) & set(split["val"])
    assert sorted(split["train"] + split["val"]) == sorted(PHOTOGRAPHS)


def test_scenes_are_cut_from_their_splits_photographs_and_use_all_of_them() -> None:
    for split in SPLITS:
        scenes = ToyScenes(split, seed=5)
        used = {scenes[index].photograph for index in range(len(PHOTOGRAPHS))}
        assert used == set(split_photographs(5)[split])


def test_no_scanned_digit_is_in_both_splits() -> None:
    train, val = (ToyScenes(split)._digits for split in SPLITS)
    assert not set(train.indices) & set(val.indices)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_installed_and_not_to_be_written_to(name: str) -> None:
    pixels = photograph(name)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert max(pixels.shape) <= photographs.LONG_SIDE and pixels.std() > 10
    assert not pixels.flags.writeable


def test_a_package_without_the_photograph_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(photographs._PLACES, "gone", ("scikit-image", "skimage", "data", "gone.png"))
    with pytest.raises(UserError, match=r"scikit-image [\d.]+ does not bring gone.png"):
        photograph("gone")


def test_what_differs_from_the_photograph_is_what_the_masks_say(scenes: list) -> None:
    for scene in scenes:
        covered = np.any([digit.mask for digit in scene.digits], axis=0)
        changed = (scene.image != scene.background).any(2)
        assert not (changed & ~covered).any()
        # A pasted pixel may by chance have the colour of what it covers.
        assert changed[covered].mean() > 0.98


def test_masks_do_not_overlap_and_boxes_enclose_them_tightly(scenes: list) -> None:
    for scene in scenes:
        assert np.sum([digit.mask for digit in scene.digits], axis=0).max() == 1
        for digit in scene.digits:
            left, top, width, height = digit.box
            inside = digit.mask[top : top + height, left : left + width]
            assert inside.sum() == digit.mask.sum()
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_label_maps_are_the_masks(scenes: list) -> None:
    for scene in scenes:
        labels = scene.label_map()
        assert labels.dtype == np.uint8
        for digit in scene.digits:
            assert (labels[digit.mask] == digit.label + 1).all()
        assert (labels > 0).sum() == sum(digit.mask.sum() for digit in scene.digits)


def test_scenes_vary(scenes: list) -> None:
    assert all(scene.image.shape[0] != scene.image.shape[1] for scene in scenes)
    assert {scene.image.shape[0] > scene.image.shape[1] for scene in scenes} == {True, False}
    assert {digit.label for scene in scenes for digit in scene.digits} == set(range(10))
    assert max(len(scene.digits) for scene in scenes) == DIGITS_PER_SCENE[1]
    assert min(len(scene.digits) for scene in scenes) >= 1


def test_a_scene_depends_on_seed_split_and_index_only() -> None:
    first, again = ToyScenes("train", seed=1), ToyScenes("train", seed=1)
    late = again[7]
    assert np.array_equal(first[7].image, late.image)
    others = [ToyScenes("train", seed=2)[7], ToyScenes("val", seed=1)[7], first[8]]
    for other in others:
        assert other.image.shape != late.image.shape or not np.array_equal(other.image, late.image)
