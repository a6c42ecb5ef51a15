"""Time a step of Stable Diffusion 1.5 with and without agent attention.

The UNet has the real shape and random weights; its softmax attention goes through scaled_dot_product_attention.
Variants take turns. On one CPU thread the speed-up is that of the process's CPU time, which other work on the machine
does not change; else that of the wall time.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import EXIT_OK, MOST_IMAGES, MOST_SIDE, MOST_THREADS, UserError, up_to
from ..data.extras import import_extra
from .timing import processor

if TYPE_CHECKING:
    from torch import nn

PRESETS = ("paper", "hires", "cpu")
_FACTOR = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=up_to(MOST_SIDE), nargs="+", default=[512, 768, 1024], metavar="N", help="image sides"
    )
    parser.add_argument(
        "--presets", nargs="+", choices=PRESETS, default=["paper", "cpu"], help="timed in a step with agents"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    parser.add_argument("--threads", type=up_to(MOST_THREADS), default=1, metavar="N", help="CPU threads")
    parser.add_argument(
        "--batch-size", type=up_to(MOST_IMAGES), default=1, metavar="N", help="images; guidance takes two for one"
    )
    parser.add_argument("--repeats", type=up_to(10**6), default=2, metavar="N", help="timed steps of each variant")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures here as JSON")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..evaluation.results import write_atomic

    for name in ("threads", "batch_size", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is needed")
    if bad := [size for size in args.sizes if size < 64 or size % _FACTOR]:
        raise UserError(f"--sizes has {bad[0]}; sides are multiples of {_FACTOR} of at least 64")
    import_extra("diffusers", extra="diffusion")
    torch.set_num_threads(args.threads)
    try:
        unet = build_unet(args.device, getattr(torch, args.dtype))
    except RuntimeError as error:
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    _step(unet, 64, 1)
    rows = []
    for size in args.sizes:
        rows += measure(unet, size, args.presets, args.batch_size, args.repeats, _clock(args))
        _print(rows[-1 - len(args.presets) :])
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, (json.dumps({**_setting(args), "rows": rows}, indent=1) + "\n").encode())
    return EXIT_OK


def build_unet(device: str, dtype: Any, **config: Any) -> "nn.Module":
    """Stable Diffusion 1.5's UNet (859.5 M parameters) with random weights.

    Raises:
        ModuleNotFoundError: without diffusers.
        RuntimeError: no such device.
    """
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{"cross_attention_dim": 768, **config}).to(device).eval().requires_grad_(False)
    return unet if dtype == torch.float32 else unet.to(dtype)


def measure(
    unet: "nn.Module", size: int, presets: list[str], batch_size: int, repeats: int, clock: str
) -> list[dict[str, Any]]:
    """Times steps at one size; ``clock`` names the figure that the speed-up is of.

    Returns:
        A row a variant, softmax first.
    """
    from ...diffusion import apply_agent_attention, estimate_agent_attention, remove_agent_attention

    variants = ["softmax", *presets]
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            if variant != "softmax":
                apply_agent_attention(unet, variant, stop=1.0)
            times[variant].append(_step(unet, size, batch_size))
            remove_agent_attention(unet)
    rows: list[dict[str, Any]] = []
    for variant, timed in times.items():
        wall, cpu = (statistics.median(one[column] for one in timed) for column in (0, 1))
        row = {"size": size, "attention": variant, "seconds": round(wall, 4), "cpu_seconds": round(cpu, 4)}
        row["speedup"] = round((rows[0] if rows else row)[clock] / row[clock], 3)
        if variant != "softmax":
            estimate = estimate_agent_attention(unet, size, size, preset=variant, stop=1.0)
            row["bound"] = round(estimate.step_bound, 3)
        rows.append(row)
    return rows


def _step(unet: "nn.Module", size: int, batch_size: int) -> tuple[float, float]:
    """Wall seconds and this process's CPU seconds of one call of the UNet."""
    import torch

    weight = next(unet.parameters())
    options = {"device": weight.device, "dtype": weight.dtype}
    side = size // _FACTOR
    sample = torch.randn(batch_size, unet.config.in_channels, side, side, **options)
    context = torch.randn(batch_size, 77, unet.config.cross_attention_dim, **options)
    if cuda := weight.device.type == "cuda":
        torch.cuda.synchronize(weight.device)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        unet(sample, 900, encoder_hidden_states=context)
    if cuda:
        torch.cuda.synchronize(weight.device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _clock(args: argparse.Namespace) -> str:
    return "cpu_seconds" if args.device == "cpu" and args.threads == 1 else "seconds"


def _setting(args: argparse.Namespace) -> dict[str, Any]:
    import diffusers
    import torch

    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else processor()
    return {
        "what": "one step of Stable Diffusion 1.5's UNet with random weights, agents on; softmax through SDPA",
        "device": device,
        "threads": args.threads,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "speedup_of": _clock(args),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        bound = f"  (arithmetic: {row['bound']:.2f}x)" if "bound" in row else ""
        times = f"{row['seconds']:9.3f} s  {row['cpu_seconds']:9.3f} s CPU"
        print(f"{row['size']:5d}  {row['attention']:8s} {times}  {row['speedup']:.2f}x{bound}", flush=True)
