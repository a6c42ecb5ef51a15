"""The weights and inputs of the parity fixtures: every tensor is a function of its name and shape alone."""

import fnmatch
import math
import zlib

import numpy as np
import torch


def reference_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The float64 value of the parameter or buffer ``key``, drawn from a stream that its name seeds.

    Tensors of two axes longer than 1 are normal over the square root of their fan-in; scales are near one, running
    variances at least one half, other vectors small.
    """
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    leaf = key.split(".")[-1]
    if leaf == "running_var":
        draw = np.abs(draw) + 0.5
    elif sum(n > 1 for n in shape) > 1:
        draw = draw / np.sqrt(max(1, math.prod(shape[1:])))
    else:
        draw = 0.1 * draw
        if leaf == "weight" or "gamma" in leaf or "layer_scale" in key:
            draw = 1.0 + draw
    return torch.from_numpy(np.asarray(draw, dtype=np.float64))


def state_rows(spec: dict) -> list[tuple[str, list[int]]]:
    """``(key, shape)`` of every floating-point tensor of a spec; "state_ranges" rows stand for numbered keys."""
    rows = [(key, shape) for key, shape in spec["state"]]
    for pattern, (first, end), shape in spec.get("state_ranges", ()):
        rows.extend((pattern.format(i=i), shape) for i in range(first, end))
    return rows


def reference_state(rows: list, gain: dict[str, float] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of ``(key, shape)`` rows. ``gain`` maps patterns of keys to factors: with a ``*`` it is matched as
    file names are, without one wherever it stands in the key."""
    state = {}
    for key, shape in rows:
        value = reference_tensor(key, shape)
        for pattern, factor in (gain or {}).items():
            if fnmatch.fnmatchcase(key, pattern) if "*" in pattern else pattern in key:
                value = value * factor
        state[key] = value
    return state


def reference_input(spec: dict) -> torch.Tensor:
    """The standard-normal float64 input ``{"seed": int, "shape": [...]}``."""
    return torch.from_numpy(np.random.RandomState(spec["seed"]).standard_normal(tuple(spec["shape"])))
