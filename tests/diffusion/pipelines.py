"""Complete pipelines with random weights, and their parts; nothing is downloaded."""

import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.unets.unet_motion_model import MotionAdapter
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPT = "a cat"
CONTEXT = 32


@cache
def tokenizer() -> CLIPTokenizer:
    """Bytes and one merged word: "a cat" has four tokens."""
    bytes_ = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(n) for n in bytes_] + [chr(256 + n) for n in range(256 - len(bytes_))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_encoder() -> CLIPTextModel:
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=516,
        hidden_size=CONTEXT,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModel(config).eval()


UNET = dict(
    block_out_channels=(16, 32),
    layers_per_block=1,
    sample_size=32,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=CONTEXT,
    attention_head_dim=2,
    norm_num_groups=8,
)


def unet(**config) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**UNET, **config}).eval()


def sdxl_unet() -> UNet2DConditionModel:
    """Three levels with transformer blocks at the second and third, as in SDXL."""
    return unet(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=CONTEXT + 6 * 8,
    )


def controlnet() -> ControlNetModel:
    torch.manual_seed(1)
    keys = ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "norm_num_groups")
    net = ControlNetModel(
        **{key: UNET[key] for key in keys}, attention_head_dim=2, conditioning_embedding_out_channels=(4, 4, 8, 8)
    ).eval()
    # Its output convolutions begin at zero and would control nothing.
    for convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(convolution.weight, std=0.3)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.3)
    return net


def motion_unet() -> UNetMotionModel:
    torch.manual_seed(0)
    adapter = MotionAdapter(
        block_out_channels=UNET["block_out_channels"],
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    return UNetMotionModel.from_unet2d(unet(), adapter).eval()


def video_unet() -> UNetSpatioTemporalConditionModel:
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    ).eval()


def pixart() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=CONTEXT,
        sample_size=32,
        use_additional_conditions=False,
    ).eval()


def pipeline(**config) -> StableDiffusionPipeline:
    """Stable Diffusion with a UNet of 0.2 M parameters: three blocks at the finest level, one in the middle."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(**config),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(pipe, height=128, width=None, steps=4, seed=0, **call) -> torch.Tensor:
    """The latents that a pipeline ends with."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        PROMPT,
        height=height,
        width=width or height,
        num_inference_steps=steps,
        generator=generator,
        output_type="latent",
        **call,
    ).images
