"""Finding the state dict inside what training loops save."""

from collections import OrderedDict

import pytest
import torch

from attnzoo.weights import CheckpointError, unwrap

RAW = {"stem.weight": torch.zeros(2), "head.bias": torch.zeros(3)}
EMA = {name: tensor + 1 for name, tensor in RAW.items()}


def prefixed(prefix: str, state_dict: dict = RAW) -> dict:
    return {prefix + name: tensor for name, tensor in state_dict.items()}


@pytest.mark.parametrize(
    ("checkpoint", "where"),
    [
        (RAW, "the file itself"),
        (OrderedDict(RAW), "the file itself"),
        ({"model": RAW, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "'model'"),
        ({"state_dict": RAW, "state_dict_ema": EMA}, "'state_dict'"),
        ({"model": RAW, "model_ema": EMA}, "'model'"),
        ({"model_ema": RAW, "args": {}}, "'model_ema'"),
        ({"model": {}, "ema": RAW}, "'ema'"),
        ({"ema": {"module": RAW}, "epoch": torch.tensor(3)}, "'ema.module'"),
        ({"state_dict": {"model": RAW}}, "'state_dict.model'"),
        ({"model": prefixed("module.")}, "'model'"),
        ({"model": prefixed("_orig_mod.")}, "'model'"),
        ({"model": prefixed("module._orig_mod.")}, "'model'"),
        ({"model": prefixed("_orig_mod.module.")}, "'model'"),
    ],
)
def test_the_weights_are_found_and_the_place_is_reported(checkpoint, where):
    found, place = unwrap(checkpoint)
    assert place == where
    assert found.keys() == RAW.keys()
    assert all(found[name] is RAW[name] for name in RAW)


def test_compiled_submodules_lose_their_wrapper_too():
    found, _ = unwrap({"stem._orig_mod.weight": torch.zeros(1), "head.bias": torch.zeros(1)})
    assert list(found) == ["stem.weight", "head.bias"]


def test_a_prefix_that_only_some_names_have_stays():
    state_dict = {"module.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    assert unwrap(state_dict)[0].keys() == state_dict.keys()


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema"])
def test_an_explicit_key_takes_the_averaged_weights(key):
    found, place = unwrap({"model": RAW, key: prefixed("module.", EMA)}, key=key)
    assert place == f"'{key}'"
    assert torch.equal(found["stem.weight"], EMA["stem.weight"])


def test_of_a_detector_the_backbone_is_taken_and_it_is_said():
    detector = {**prefixed("backbone."), "neck.weight": torch.zeros(1), "roi_head.weight": torch.zeros(1)}
    found, place = unwrap({"state_dict": detector, "meta": {"epoch": 36}})
    assert found.keys() == RAW.keys()
    assert place == "'state_dict'; backbone only, 2 tensors of the rest left out"


def test_counters_are_dropped_and_it_is_said():
    counters = ("total_ops", "stem.total_ops", "stem.total_params")
    counted = {**RAW, **{name: torch.zeros(1) for name in counters}}
    found, place = unwrap({"model": counted})
    assert found.keys() == RAW.keys()
    assert "dropped 3 counters" in place


def test_averaged_models_counter_does_not_hide_the_wrapper():
    found, _ = unwrap({"n_averaged": torch.tensor(7), **prefixed("module.")})
    assert found.keys() == RAW.keys()


def test_values_that_are_no_tensors_are_left_out_and_it_is_said():
    found, place = unwrap({"model": {**RAW, "version": "1"}})
    assert found.keys() == RAW.keys()
    assert "left out 1 values that are no tensors" in place


@pytest.mark.parametrize(
    ("checkpoint", "key", "words"),
    [
        ({"model": RAW}, "model_ema", "has no key 'model_ema'; it holds model"),
        ({"model": [torch.ones(1)]}, None, "expected a state dict under 'model', got list"),
        ({"model": RAW, "model_ema": None}, "model_ema", "expected a state dict under 'model_ema', got NoneType"),
        ({"epoch": 1, "optimizer": {"lr": 0.1}}, None, "holds no state dict; it holds epoch, optimizer"),
        ({}, None, "holds no state dict; it holds nothing"),
        ({"model": {0: torch.ones(1)}}, None, "a key that is no string: 0"),
        ({"model": {"total_ops": torch.ones(1)}}, None, "holds no tensors"),
    ],
)
def test_what_holds_no_weights_says_what_it_holds(checkpoint, key, words):
    with pytest.raises(CheckpointError) as caught:
        unwrap(checkpoint, key)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_itself_is_left_as_it_is():
    checkpoint = {"model": prefixed("module.")}
    unwrap(checkpoint)
    assert list(checkpoint["model"]) == ["module.stem.weight", "module.head.bias"]
