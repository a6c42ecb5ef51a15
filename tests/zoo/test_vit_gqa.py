"""What is key-driven GQA's own among the models: noise from outside, plain ViTs' checkpoints, kept norms."""

import numpy as np
import pytest
import timm
import torch
from parity import load_arrays, published_state, reference_input, relative_error, requires_fixture

import attnzoo

SMALL = dict(depth=2, num_classes=5)


def test_noise_from_outside_as_published():
    spec = requires_fixture("kdgqa_vit_small_pgqa")
    model = timm.create_model("vit_small_pgqa").double().eval()
    model.load_state_dict(published_state(spec))
    stream, draws = np.random.RandomState(spec["noise"]["seed"]), []

    def noise(rows, columns):
        draws.append((rows, columns))
        return torch.from_numpy(stream.random_sample((rows, columns)))

    model.set_noise(noise)
    with torch.no_grad():
        logits = model(reference_input(spec["input"]))
    assert draws == [(2, 197 * 64)] * spec["noise"]["draws"]
    assert relative_error(logits, load_arrays("kdgqa_vit_small_pgqa")["logits"]) < 1e-6


def test_noise_from_a_generator_is_repeatable():
    model, image = timm.create_model("vit_small_pgqa", **SMALL).train(), torch.randn(1, 3, 64, 64)
    outputs = []
    for _ in range(2):
        model.set_noise(generator=torch.Generator().manual_seed(7))
        outputs.append(model(image))
    assert torch.equal(*outputs)
    model.set_noise()
    assert not torch.equal(model(image), outputs[0])


@pytest.mark.parametrize("kind", ["gqa", "kdgqa", "dgqa", "pgqa"])
def test_a_plain_vit_is_converted(kind):
    torch.manual_seed(0)
    plain = timm.create_model("vit_small_patch16_224", **SMALL)
    model = timm.create_model(f"vit_small_{kind}", **SMALL)
    model.load_state_dict(plain.state_dict())
    heads = plain.blocks[1].attn.qkv.weight[384:768].view(6, 64, 384)
    torch.testing.assert_close(model.stages[1].attn.k.weight[:64], (heads[0] + heads[1]) / 2)
    assert torch.equal(model.head.weight, plain.head.weight)


def test_a_plain_vit_with_all_key_heads_gives_its_logits():
    torch.manual_seed(0)
    plain = timm.create_model("vit_small_patch16_224", **SMALL).eval()
    model = timm.create_model("vit_small_gqa", num_kv_heads=6, **SMALL).eval()
    model.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-5)


def test_kept_norms_of_published_files():
    model = timm.create_model("vit_small_dgqa", **SMALL)
    state = timm.create_model("vit_small_patch16_224", **SMALL).state_dict()
    kept = torch.tensor([1.0, 2.0, 3.0])
    model.load_state_dict({**state, "blocks.1.attn.cache": kept})
    assert torch.equal(model.stages[1].attn.key_norms, kept)
    assert torch.equal(model.stages[0].attn.key_norms, torch.zeros(3))
    converted = attnzoo.convert_checkpoint(model.state_dict(), model)
    assert all(torch.equal(value, converted[key]) for key, value in model.state_dict().items())


def test_positions_for_another_size():
    torch.manual_seed(0)
    source = timm.create_model("vit_small_gqa", **SMALL).eval()
    model = timm.create_model("vit_small_gqa", img_size=(128, 160), **SMALL).eval()
    model.load_state_dict(attnzoo.convert_checkpoint(source.state_dict(), model))
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(image), source(image))
    fixed = timm.create_model("vit_small_gqa", dynamic_img_size=False, **SMALL)
    with pytest.raises(ValueError, match="224×224 works"):
        fixed(image)


def test_arguments():
    with pytest.raises(ValueError, match="attn_type='mha'"):
        timm.create_model("vit_small_gqa", attn_type="mha")
    with pytest.raises(ValueError, match="num_kv_heads=4"):
        timm.create_model("vit_small_gqa", num_kv_heads=4)
