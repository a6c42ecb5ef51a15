"""``attnzoo diffuse`` and ``attnzoo bench diffusion``, on a pipeline's folder; and comparing from Python."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from pipelines import PROMPT, latents_of, pipeline

from attnzoo.diffusion import AgentSelfAttention, apply_agent_attention, compare_agent_attention
from attnzoo.tools.benchmarks import diffusion as bench
from attnzoo.tools.main import main
from attnzoo.zoo.diffusion.compare import step_callback, warm_up_steps

SMALL = ["--height", "64", "--width", "64", "--steps", "3", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline().save_pretrained(folder)
    return str(folder)


def failed(capsys, *words):
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    return error[-1]


def test_draws(folder, tmp_path, capsys):
    output = tmp_path / "cat.png"
    words = ["diffuse", folder, "--prompt", PROMPT, *SMALL, "--set", "cell=2", "agent_ratio=0.75", "stop=1.0"]
    assert main([*words, "--output", str(output)]) == 0
    assert "tokens, 3 blocks" in capsys.readouterr().out
    image = Image.open(output)
    assert image.size == (64, 64)
    assert main([*words, "--seed", "0", "1", "--output", str(output)]) == 0
    first, second = (Image.open(tmp_path / f"cat-{seed}.png") for seed in (0, 1))
    assert first.tobytes() == image.tobytes() != second.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-0.png", "cat-1.png", "cat.png"]


def test_dtype(folder, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    seen = []
    call = StableDiffusionPipeline.__call__

    def noted(pipe, *args, **kwargs):
        seen.append(pipe.dtype)
        return call(pipe, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", noted)
    words = ["diffuse", folder, "--prompt", PROMPT, *SMALL, "--dtype", "bfloat16", "--set", "cell=2", "stop=1.0"]
    assert main([*words, "--output", str(tmp_path / "cat.png")]) == 0
    assert seen == [torch.bfloat16]


def test_compares(folder, tmp_path, capsys):
    output = tmp_path / "both.png"
    words = ["diffuse", folder, "--prompt", PROMPT, *SMALL, "--compare", "--seed", "0", "4"]
    assert main([*words, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PSNR") == 2
    assert "faster with agents" in printed
    assert Image.open(output).size == (3 * 64 + 8, 2 * (64 + 16))


def test_estimates_without_drawing(folder, tmp_path, capsys):
    words = ["diffuse", folder, "--estimate", "--height", "1024", "--width", "512", "--preset", "hires"]
    assert main([*words, "--output", str(tmp_path / "none.png")]) == 0
    assert "128x64 tokens, 3 blocks" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


BAD = [
    (["--steps", "3"], "--prompt is needed"),
    (["--prompt", "a", "--set", "merge_ratio=1"], "merge_ratio is 1;"),
    (["--prompt", "a", "--set", "speed=2"], "no setting 'speed'"),
    (["--prompt", "a", "--set", "levels=[9]"], "leaves nothing to patch"),
    (["--prompt", "a", "--steps", "0"], "--steps is 0"),
    (["--prompt", "a", "--output", "image.jpg"], "images are written as .png"),
    (["--prompt", "a", "--output", "nowhere/image.png"], "there is no folder nowhere"),
    (["--prompt", "a", "--device", "tpu9"], "--device tpu9"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line(folder, capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    error = failed(capsys, "diffuse", folder, *words)
    assert error.startswith("attnzoo diffuse: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_preset_is_refused_before_the_pipeline_is_looked_at(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["diffuse", "nowhere", "--preset", "papre"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "papre" in error
    assert "nowhere" not in error


def test_no_pipeline(tmp_path, capsys):
    assert "has no model_index.json" in failed(capsys, "diffuse", tmp_path, "--prompt", "a")
    (tmp_path / "model_index.json").write_text("{")
    assert "cannot load the pipeline" in failed(capsys, "diffuse", tmp_path, "--prompt", "a")


def test_pickled_weights_are_refused(tmp_path, capsys):
    pipeline().save_pretrained(tmp_path, safe_serialization=False)
    assert "cannot load the pipeline" in failed(capsys, "diffuse", tmp_path, "--prompt", "a")


def test_comparison(pipe):
    plain = latents_of(pipe, steps=3)
    steps = []
    found = compare_agent_attention(
        pipe,
        PROMPT,
        [0, 1],
        settings=dict(stop=1.0, cell=2, agent_ratio=0.75),
        on_step=lambda: steps.append(1),
        num_inference_steps=3,
        height=128,
        width=128,
    )
    assert len(steps) == 2 * 2 * 3
    assert torch.equal(latents_of(pipe, steps=3), plain)
    for row in found.figures():
        assert row["seconds"] > 0
        assert 5 < row["psnr"] < 80
        assert 0 < row["mean"] < row["largest"] <= 255
    assert found.speedup > 0
    assert found.picture().size == (3 * 128 + 8, 2 * (128 + 16))


@pytest.mark.parametrize("kind", ["image", "inpaint"])
@pytest.mark.parametrize("strength", [None, 0.3])
def test_comparison_of_images_to_images(pipe, kind, strength):
    """Their warm-up of one step would have none."""
    other = {"image": StableDiffusionImg2ImgPipeline, "inpaint": StableDiffusionInpaintPipeline}[kind].from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    call = dict(image=Image.effect_noise((64, 64), 80).convert("RGB"), num_inference_steps=4)
    if strength is not None:
        call["strength"] = strength
    if kind == "inpaint":
        call.update(mask_image=Image.new("L", (64, 64), 255), height=64, width=64)
    steps = []
    compare_agent_attention(other, PROMPT, on_step=lambda: steps.append(1), **call)
    whole = {None: {"image": 3, "inpaint": 4}[kind], 0.3: 1}[strength]
    assert len(steps) == 2 * whole


@pytest.mark.parametrize("strength", [0.001, 1 / 49, 0.2, 0.6, 0.999, 1.0, 2.0])
def test_warm_up_is_the_shortest_run(strength):
    class Pipe:
        def __call__(self, prompt, strength=0.8, num_inference_steps=50):
            pass

    few = warm_up_steps(Pipe(), {"strength": strength})
    assert few == 50 or int(few * strength) >= 1
    assert few == 1 or int((few - 1) * strength) < 1
    assert warm_up_steps(Pipe(), {}) == 2


def test_comparison_calls_the_callers_callback_too(pipe):
    seen, steps = [], []

    def mine(pipeline, step_index, timestep, kwargs):
        seen.append(step_index)
        return kwargs

    call = dict(num_inference_steps=2, height=64, width=64)
    compare_agent_attention(pipe, PROMPT, on_step=lambda: steps.append(1), callback_on_step_end=mine, **call)
    assert len(steps) == 4
    assert seen == [0, 0, 1, 0, 0, 1]  # the warm-ups too


def test_comparison_of_seeds_in_an_array(pipe):
    found = compare_agent_attention(pipe, PROMPT, np.arange(2), num_inference_steps=1, height=64, width=64)
    assert found.seeds == (0, 1)
    json.dumps(found.figures())
    for bad in (1.5, "12", [0, None]):
        with pytest.raises(TypeError, match=r"seed is .*; it is a whole number, or several"):
            compare_agent_attention(pipe, PROMPT, bad)
    with pytest.raises(ValueError, match="output_type is 'np'; images are compared, so leave it out"):
        compare_agent_attention(pipe, PROMPT, output_type="np")


def test_comparison_of_nothing_is_equal(pipe):
    found = compare_agent_attention(
        pipe, PROMPT, settings=dict(min_tokens=10**6), num_inference_steps=2, height=64, width=64
    )
    assert found.differences[0].psnr == math.inf
    assert found.differences[0].largest == 0


def test_comparison_leaves_the_pipeline_unpatched_on_an_error(pipe):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_agent_attention(pipe, PROMPT, on_step=interrupted, num_inference_steps=2, height=64, width=64)
    with pytest.raises(ValueError, match="merge_ratio"):
        compare_agent_attention(pipe, PROMPT, settings=dict(merge_ratio=2))
    assert not any(type(module) is AgentSelfAttention for module in pipe.unet.modules())
    apply_agent_attention(pipe)
    with pytest.raises(ValueError, match="patched already"):
        compare_agent_attention(pipe, PROMPT)
    with pytest.raises(ValueError, match="seed is empty"):
        compare_agent_attention(pipe, PROMPT, seed=[])
    with pytest.raises(TypeError, match="pipeline is needed"):
        compare_agent_attention(pipe.unet, PROMPT)


def test_steps_of_pipelines_with_the_older_callback():
    """PixArt's, for one."""

    class Older:
        def __call__(self, prompt, callback=None):
            callback(0, 981, "latents")

    class Without:
        def __call__(self, prompt):
            pass

    steps = []
    Older()("", **step_callback(Older(), lambda: steps.append(1)))
    assert steps == [1]
    assert step_callback(Without(), print) == step_callback(Older(), None) == {}


def test_saves_the_picture_or_nothing(pipe, tmp_path):
    found = compare_agent_attention(pipe, PROMPT, num_inference_steps=1, height=64, width=64)
    found.save(tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert Image.open(tmp_path / "picture.png").format == "PNG"
    with pytest.raises(OSError, match="nowhere"):
        found.save(tmp_path / "nowhere" / "picture.png")


def test_bench(tmp_path, monkeypatch, capsys):
    build = bench.build_unet
    small = dict(block_out_channels=(16, 16, 16, 16), norm_num_groups=8, attention_head_dim=2, layers_per_block=1)
    monkeypatch.setattr(bench, "build_unet", lambda device, dtype: build(device, dtype, **small))
    output = tmp_path / "results" / "cpu.json"
    assert main(["bench", "diffusion", "--sizes", "64", "128", "--repeats", "1", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    rows = found["rows"]
    assert [(row["size"], row["attention"]) for row in rows] == [
        (size, attention) for size in (64, 128) for attention in ("softmax", "paper", "cpu")
    ]
    for softmax, *others in (rows[:3], rows[3:]):
        for row in others:
            assert row["speedup"] == pytest.approx(softmax["cpu_seconds"] / row["cpu_seconds"], rel=0.02)
            assert row["bound"] >= 1
    assert (found["dtype"], found["threads"], found["speedup_of"]) == ("float32", 1, "cpu_seconds")
    assert capsys.readouterr().out.count("CPU") == 6


def test_bench_without_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "diffusers is not installed; pip install 'attnzoo[diffusion]'" in failed(capsys, "bench", "diffusion")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "100"], "--sizes has 100; sides are multiples of 8"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--device", "tpu9"], "--device tpu9"),
    ],
)
def test_bench_bad_input(capsys, monkeypatch, words, message):
    build = bench.build_unet
    small = dict(block_out_channels=(16, 16, 16, 16), norm_num_groups=8, attention_head_dim=2, layers_per_block=1)
    monkeypatch.setattr(bench, "build_unet", lambda device, dtype: build(device, dtype, **small))
    assert message in failed(capsys, "bench", "diffusion", *words)
