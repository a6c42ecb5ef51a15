"""Draw images with a diffusers pipeline and agent attention, or compare with and without."""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .allocator import keep_freed_memory
from .benchmarks.diffusion import PRESETS
from .cli import EXIT_OK, MOST_SEED, MOST_SIDE, MOST_THREADS, UserError, up_to, whole_number

_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", metavar="PIPELINE", help="folder of a saved pipeline, or its name on the hub")
    parser.add_argument("--prompt", help="what to draw; needed unless --estimate")
    parser.add_argument(
        "--seed", type=whole_number(0, MOST_SEED), nargs="+", default=[0], metavar="N", help="one image each"
    )
    parser.add_argument("--steps", type=up_to(10**6), default=50, metavar="N", help="denoising steps")
    parser.add_argument("--height", type=up_to(MOST_SIDE), metavar="N", help="of the image (the pipeline's)")
    parser.add_argument("--width", type=up_to(MOST_SIDE), metavar="N", help="of the image (the pipeline's)")
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="of settings")
    parser.add_argument(
        "--set", type=_setting, nargs="+", default=[], metavar="NAME=VALUE", help="settings that replace the preset's"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", action="store_true", help="draw without agents too, side by side")
    what.add_argument("--estimate", action="store_true", help="draw nothing, say what there is to gain")
    parser.add_argument("--when", choices=("always", "auto"), default="always", help="auto: only where it gains")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the weights")
    parser.add_argument("--threads", type=up_to(MOST_THREADS), metavar="N", help="CPU threads (PyTorch's choice)")
    parser.add_argument("--output", type=Path, default=Path("image.png"), metavar="FILE", help="PNG; seeds are added")


def run(args: argparse.Namespace) -> int:
    _check(args)
    keep_freed_memory()
    import torch

    try:
        from .. import diffusion
    except ModuleNotFoundError as error:
        raise UserError(f"{error}") from None
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(highlight=False, soft_wrap=True)
    pipe = _load(args)
    settings = dict(args.set)
    size = {"height": args.height, "width": args.width}
    try:
        _estimate(console, pipe, args, settings, size)
        if args.estimate:
            return EXIT_OK
        call = {**{name: n for name, n in size.items() if n}, "num_inference_steps": args.steps}
        if args.compare:
            _compare(console, pipe, args, settings, call)
        else:
            diffusion.apply_agent_attention(pipe, args.preset, when=args.when, steps=args.steps, **size, **settings)
            _draw(console, pipe, args, call)
    except (ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return EXIT_OK


def _estimate(
    console: Console, pipe: Any, args: argparse.Namespace, settings: dict[str, Any], size: dict[str, int | None]
) -> None:
    from ..diffusion import estimate_agent_attention

    try:
        found = estimate_agent_attention(pipe, **size, steps=args.steps, preset=args.preset, **settings)
    except ValueError as error:
        if args.estimate:
            raise
        found = f"no estimate: {error}"
    console.print(str(found), markup=False)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    with contextlib.suppress(json.JSONDecodeError):  # a bare word such as grid
        value = json.loads(value)
    return name, tuple(value) if isinstance(value, list) else value


def _check(args: argparse.Namespace) -> None:
    if not args.estimate and not args.prompt:
        raise UserError("--prompt is needed to draw; --estimate does without")
    for name in ("steps", "height", "width", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; at least 1 is needed")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output is {args.output}; images are written as .png")
    if not args.output.parent.is_dir():
        raise UserError(f"--output is {args.output}, but there is no folder {args.output.parent}")


def _load(args: argparse.Namespace) -> Any:
    """The pipeline, from safetensors only."""
    import torch
    from diffusers import DiffusionPipeline

    folder = Path(args.pipeline)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} has no model_index.json; a pipeline's folder is what save_pretrained writes")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pipe = DiffusionPipeline.from_pretrained(
            args.pipeline,
            use_safetensors=True,
            local_files_only=folder.exists(),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"cannot load the pipeline {args.pipeline}: {' '.join(str(error).split())}") from error
    try:
        pipe = pipe.to(device, getattr(torch, args.dtype))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=not console.is_terminal)


def _compare(
    console: Console, pipe: Any, args: argparse.Namespace, settings: dict[str, Any], call: dict[str, Any]
) -> None:
    from ..diffusion import compare_agent_attention

    with _progress(console) as progress:
        task = progress.add_task("steps", total=2 * len(args.seed) * args.steps)
        found = compare_agent_attention(
            pipe,
            args.prompt,
            args.seed,
            preset=args.preset,
            settings=settings,
            on_step=lambda: progress.advance(task),
            **call,
        )
    for row in found.figures():
        console.print(
            f"seed {row['seed']}: {row['seconds']:.2f} s without, {row['seconds_with_agents']:.2f} s with agents; "
            f"{row['peak_mb']:.0f} and {row['peak_mb_with_agents']:.0f} MB; PSNR {row['psnr']:.1f} dB, "
            f"mean difference {row['mean']:.2f} of 255"
        )
    console.print(f"{found.speedup:.2f}x faster with agents, all seeds together")
    _write(found.picture(), args.output)
    console.print(f"picture: {args.output}")


def _draw(console: Console, pipe: Any, args: argparse.Namespace, call: dict[str, Any]) -> None:
    import torch

    from ..zoo.diffusion.compare import step_callback

    with _progress(console) as progress:
        task = progress.add_task("steps", total=len(args.seed) * args.steps)
        call = {**call, **step_callback(pipe, lambda: progress.advance(task))}
        for seed in args.seed:
            generator = torch.Generator("cpu").manual_seed(seed)
            image = pipe(args.prompt, generator=generator, **call).images[0]
            name = f"{args.output.stem}-{seed}.png" if len(args.seed) > 1 else args.output.name
            _write(image, args.output.with_name(name))
            console.print(f"seed {seed}: {args.output.with_name(name)}")


def _write(image: Any, path: Path) -> None:
    import io

    from .evaluation.results import write_atomic

    content = io.BytesIO()
    image.save(content, format="PNG")
    write_atomic(path, content.getvalue())
