"""Checks a family's arguments before anything is built, so that the one at fault is named."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from ..kernels._checks import shown


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (lambda n: _is_int(n) and n >= 1, "a whole number from 1 on")
_NATURAL: _Rule = (lambda n: _is_int(n) and n >= 0, "a whole number from 0 on")
_ODD: _Rule = (lambda n: _is_int(n) and n >= 1 and n % 2 == 1, "an odd whole number from 1 on")
_EVEN: _Rule = (lambda n: _is_int(n) and n >= 2 and n % 2 == 0, "an even whole number from 2 on")
_POSITIVE: _Rule = (lambda n: _is_number(n) and n > 0, "a number above 0")
_NUMBER: _Rule = (_is_number, "a finite number")
_PROBABILITY: _Rule = (lambda n: _is_number(n) and 0 <= n <= 1, "a number from 0 to 1")
_SHARE: _Rule = (lambda n: _is_number(n) and 0 < n <= 1, "a number above 0 and up to 1")

_RULES_BY_NAMES: dict[_Rule, str] = {
    _COUNT: """
        agent_grid agent_grids basis_coef_topk depth depths dilation dilations focus_depths full_attn_heads head_dim
        head_width img_size in_chans num_agents num_basis num_heads num_kv_heads num_regions patch_size qk_dim
        reduce_c_factor reduce_n_factor reductions split_size window_size
    """,
    _NATURAL: "agent_depth agent_depths linear_stages num_classes topks",
    _ODD: "kernel_size kernel_sizes lepe_kernel lim_kernel smk_size",
    # Stems begin with half of the first width, or attention splits it into heads.
    _EVEN: "embed_dim embed_dims",
    _POSITIVE: "mlp_ratio mlp_ratios focus_mlp_ratio",
    _NUMBER: "attn_score_threshold basis_coef_threshold basis_threshold init_values",
    _PROBABILITY: "drop_rate drop_path_rate proj_drop_rate",
    _SHARE: "attn_keep_rate token_keep_rate",
}
_RULES = {name: rule for rule, names in _RULES_BY_NAMES.items() for name in names.split()}
_PAIRS = ("agent_grid", "img_size", "num_agents")


def check_arguments(model_cls: type[nn.Module], given: Mapping[str, Any]) -> None:
    """Checks those of a model class's arguments whose ranges are known.

    Raises:
        TypeError: a sequence where one value is needed, or the other way round.
        ValueError: a value out of its range, or another number of entries than stages.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(model_cls).parameters.items()}
    for name, value in given.items():
        if value is None or name not in defaults or name not in _RULES:
            continue
        _check_form(name, value, defaults[name])
        fits, wanted = _RULES[name]
        for leaf in _leaves(value):
            if leaf is not None and not fits(leaf):
                where = "" if leaf is value else f" in {shown(value)}"
                raise ValueError(f"{name}={shown(leaf)}{where}: {wanted} is needed")
    _check_lengths(defaults, given)


def _check_form(name: str, value: Any, default: Any) -> None:
    is_sequence = isinstance(value, (tuple, list))
    if isinstance(default, tuple) and not is_sequence:
        raise TypeError(f"{name}={shown(value)}: a sequence such as {default!r} is needed")
    if isinstance(default, (int, float)) and is_sequence and name not in (*_PAIRS, "kernel_size"):
        raise TypeError(f"{name}={shown(value)}: one value such as {default!r} is needed")
    entries = value if isinstance(default, tuple) or name == "agent_grids" else (value,)
    for entry in entries if name.removesuffix("s") in ("agent_grid", "img_size", "num_agent") else ():
        if isinstance(entry, (tuple, list)) and len(entry) != 2:
            raise ValueError(f"{name}={shown(value)}: sizes are one number or (rows, columns)")


def _check_lengths(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """An argument has one entry a stage where it has by default as many as ``depths``."""
    if isinstance(defaults.get("depths"), tuple):
        stages, usual = given.get("depths") or defaults["depths"], len(defaults["depths"])
        names = [name for name, default in defaults.items() if isinstance(default, tuple) and len(default) == usual]
        for name in (*names, "kernel_size"):
            _same_length("depths", stages, name, given.get(name, defaults.get(name)))
    _same_length(
        "num_agents", given.get("num_agents", defaults.get("num_agents")), "agent_grids", given.get("agent_grids")
    )


def _same_length(name: str, value: Any, other: str, others: Any) -> None:
    if isinstance(others, (tuple, list)) and len(others) != len(value):
        raise ValueError(f"{other}={shown(tuple(others))}: one entry for each of {name}={tuple(value)} is needed")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value
