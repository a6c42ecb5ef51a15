"""The same images with and without agent attention, side by side, with time, memory and how far they are apart."""

from __future__ import annotations

import inspect
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw

from ...kernels._checks import shown
from ...weights.files import replace_file
from .blocks import denoisers
from .patch import apply_agent_attention, remove_agent_attention, schedules_of

_CAPTION = 16
_GAP = 4


@dataclass(frozen=True)
class Run:
    """One image.

    Args:
        image: RGB.
        seconds: wall time of the pipeline's call.
        peak_mb: memory above what was held before, in MB (10^6 bytes): of the GPU, or resident on a CPU.
    """

    image: Image.Image
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Difference:
    """How far two images are apart, in levels of 0 to 255.

    Args:
        psnr: peak signal-to-noise ratio in dB; infinite for equal images.
        mean: mean absolute difference.
        largest: largest difference.
    """

    psnr: float
    mean: float
    largest: int


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_agent_attention` found, one of each a seed.

    Args:
        prompt: as given.
        seeds: as given.
        without: runs of the pipeline as it is.
        with_agents: runs of the patched one.
        differences: of the images.
    """

    prompt: str
    seeds: tuple[int, ...]
    without: tuple[Run, ...]
    with_agents: tuple[Run, ...]
    differences: tuple[Difference, ...]

    @property
    def speedup(self) -> float:
        """Time without over time with, all runs together."""
        return sum(run.seconds for run in self.without) / sum(run.seconds for run in self.with_agents)

    def figures(self) -> list[dict[str, float]]:
        """What was measured, a dictionary a seed."""
        rows = zip(self.seeds, self.without, self.with_agents, self.differences, strict=True)
        return [
            {
                "seed": seed,
                "seconds": round(plain.seconds, 4),
                "seconds_with_agents": round(agents.seconds, 4),
                "peak_mb": round(plain.peak_mb, 1),
                "peak_mb_with_agents": round(agents.peak_mb, 1),
                **asdict(difference),
            }
            for seed, plain, agents, difference in rows
        ]

    def picture(self) -> Image.Image:
        """One row a seed: without, with, and their difference four times as strong."""
        width, height = self.without[0].image.size
        sheet = Image.new("RGB", (3 * width + 2 * _GAP, len(self.seeds) * (height + _CAPTION)), "white")
        draw = ImageDraw.Draw(sheet)
        rows = zip(self.seeds, self.without, self.with_agents, self.differences, strict=True)
        for row, (seed, plain, agents, difference) in enumerate(rows):
            apart = ImageChops.difference(plain.image, agents.image).point(lambda level: min(255, 4 * level))
            captions = (
                f"seed {seed}, without: {plain.seconds:.2f} s",
                f"with agents: {agents.seconds:.2f} s",
                f"difference x4: {difference.psnr:.1f} dB",
            )
            top = row * (height + _CAPTION)
            for column, (image, caption) in enumerate(zip((plain.image, agents.image, apart), captions, strict=True)):
                left = column * (width + _GAP)
                draw.text((left + 2, top + 2), caption, fill="black")
                sheet.paste(image, (left, top + _CAPTION))
        return sheet

    def save(self, path: str | os.PathLike) -> None:
        """Writes the picture as PNG; the file is whole or as it was.

        Raises:
            OSError: it cannot be written.
        """
        content = io.BytesIO()
        self.picture().save(content, format="PNG")
        replace_file(Path(path), content.getvalue())


def compare_agent_attention(
    pipe: Any,
    prompt: str,
    seed: int | Sequence[int] = 0,
    *,
    preset: str = "paper",
    settings: dict[str, Any] | None = None,
    on_step: Callable[[], None] | None = None,
    **call: Any,
) -> Comparison:
    """Draws the same images with and without agent attention.

    Both are preceded by a step that is not timed. The pipeline is left unpatched.

    Args:
        pipe: a diffusers pipeline whose call takes a prompt and returns images, not patched.
        prompt: what to draw.
        seed: of the initial noise, a whole number; several, in a sequence or an array, give several images.
        preset: as for :func:`apply_agent_attention`.
        settings: likewise, the fields of :class:`AgentSettings` to replace.
        on_step: called after every step of every run, for a progress bar; after a callback in ``call``.
        **call: to the pipeline: ``height``, ``width``, ``num_inference_steps``, ``guidance_scale``, …

    Raises:
        TypeError: no pipeline, a seed that is no whole number, or no such setting.
        ValueError: a pipeline that is patched already, no seed, another ``output_type``, or what
            :func:`apply_agent_attention` refuses.
    """
    seeds = _checked_seeds(seed)
    if call.get("output_type", "pil") != "pil":
        raise ValueError(f"output_type is {shown(call['output_type'])}; images are compared, so leave it out")
    call.pop("output_type", None)
    if not callable(pipe) or isinstance(pipe, torch.nn.Module):
        raise TypeError(f"a diffusers pipeline is needed, not {type(pipe).__name__}")
    if schedules_of(pipe):
        raise ValueError("the pipeline is patched already; call remove_agent_attention(pipe) first")
    size = {name: call[name] for name in ("height", "width") if call.get(name) is not None}
    # A bad setting is to be told before minutes are spent on the first images.
    apply_agent_attention(pipe, preset, **size, **(settings or {}))
    remove_agent_attention(pipe)
    without = _runs(pipe, prompt, seeds, on_step, call)
    apply_agent_attention(pipe, preset, **size, **(settings or {}))
    try:
        with_agents = _runs(pipe, prompt, seeds, on_step, call)
    finally:
        remove_agent_attention(pipe)
    differences = tuple(_difference(a.image, b.image) for a, b in zip(without, with_agents, strict=True))
    return Comparison(prompt, seeds, without, with_agents, differences)


def _checked_seeds(seed: Any) -> tuple[int, ...]:
    seeds = tuple(seed) if isinstance(seed, (Sequence, np.ndarray)) and not isinstance(seed, str) else (seed,)
    if not seeds:
        raise ValueError("seed is empty; at least one is needed")
    for one in seeds:
        if not isinstance(one, (int, np.integer)) or isinstance(one, bool):
            raise TypeError(f"seed is {shown(one)}; it is a whole number, or several")
    return tuple(int(one) for one in seeds)


def _runs(
    pipe: Any, prompt: str, seeds: tuple[int, ...], on_step: Callable[[], None] | None, call: dict[str, Any]
) -> tuple[Run, ...]:
    counted = {**call, **step_callback(pipe, on_step, call)}
    _draw(pipe, prompt, seeds[0], {**call, "num_inference_steps": warm_up_steps(pipe, call)})
    runs = []
    for seed in seeds:
        with _PeakMemory(denoisers(pipe)[0]) as memory:
            started = time.perf_counter()
            image = _draw(pipe, prompt, seed, counted)
            memory.synchronize()
            seconds = time.perf_counter() - started
        runs.append(Run(image, seconds, memory.peak_mb))
    return tuple(runs)


def warm_up_steps(pipe: Any, call: dict[str, Any]) -> int:
    """As few as leave one: image-to-image leaves out the share of them that its ``strength`` does not ask for."""
    known = inspect.signature(type(pipe).__call__).parameters
    strength, steps = (
        call.get(name, known[name].default if name in known else None) for name in ("strength", "num_inference_steps")
    )
    if not isinstance(strength, (int, float)) or not 0 < strength < 1 or not isinstance(steps, int):
        return 1
    return next((few for few in range(1, steps) if int(few * strength) >= 1), steps)


def step_callback(pipe: Any, on_step: Callable[[], None] | None, call: dict[str, Any] | None = None) -> dict[str, Any]:
    """What to pass to a pipeline to have ``on_step`` called after every step, after the caller's own callback in
    ``call``; nothing where it has no such argument."""
    if on_step is None:
        return {}
    known = inspect.signature(type(pipe).__call__).parameters
    name = next((name for name in ("callback_on_step_end", "callback") if name in known), None)
    if name is None:
        return {}
    own = (call or {}).get(name)

    def step_ended(*args: Any) -> Any:
        answer = args[-1] if own is None else own(*args)
        on_step()
        return answer

    if name == "callback_on_step_end" and own is not None and hasattr(own, "tensor_inputs"):
        # A pipeline asks diffusers' own callbacks what they want to see, not a function.
        return {name: step_ended, "callback_on_step_end_tensor_inputs": own.tensor_inputs}
    return {name: step_ended}


def _draw(pipe: Any, prompt: str, seed: int, call: dict[str, Any]) -> Image.Image:
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="pil", **call).images[0].convert("RGB")


class _PeakMemory:
    """Highest memory while the block runs, above that at its beginning: sampled on a CPU, exact on CUDA."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._device = next(model.parameters()).device
        self._over = threading.Event()
        self.peak_mb = 0.0

    def __enter__(self) -> _PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)
        else:
            self._base = self._peak = _resident()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._over.set()
            self._thread.join()
        self.peak_mb = max(0, self._peak - self._base) / 1e6

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _difference(first: Image.Image, second: Image.Image) -> Difference:
    a, b = (np.asarray(image, dtype=np.float64) for image in (first, second))
    squared = float(((a - b) ** 2).mean())
    psnr = float("inf") if squared == 0 else 10 * float(np.log10(255**2 / squared))
    return Difference(round(psnr, 2), round(float(np.abs(a - b).mean()), 4), int(np.abs(a - b).max()))
