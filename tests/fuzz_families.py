"""For every family of the zoo: settings that make a model of a few kilobytes, and values in and out of their ranges."""

from typing import Any

import timm
from hypothesis import strategies as st

import attnzoo

_NUMBERS = (-1, 0, 1, 2, 3, 5, 8)
_FOUR = dict(depths=(1, 1, 1, 1))

TINY: dict[str, dict[str, Any]] = {
    "agent_cswin": dict(embed_dim=8, num_heads=(1, 2, 2, 4), num_agents=(4, 9), split_size=2, **_FOUR),
    "agent_deit": dict(embed_dim=8, depth=2, num_heads=2, num_agents=4),
    "agent_pvt": dict(
        embed_dims=(8, 8, 16, 16), num_heads=(1, 2, 2, 4), mlp_ratios=(2, 2, 2, 2), num_agents=(4, 4, 9, 9), **_FOUR
    ),
    "agent_swin": dict(
        embed_dim=8,
        depths=(2, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        agent_depths=(1, 1, 1, 0),
        num_agents=(4, 4, 4, 4),
        window_size=3,
    ),
    "biformer": dict(
        embed_dims=(8, 8, 16, 16), head_dim=8, num_regions=3, topks=(1, 2, 4, 0), full_attn_heads=2, **_FOUR
    ),
    "flowformer": dict(embed_dims=(8, 8, 16, 16), num_heads=2, **_FOUR),
    "l2vit": dict(embed_dims=(8, 8, 16, 16), head_dim=4, window_size=3, **_FOUR),
    "mavit": dict(embed_dims=(8, 8, 16, 16), num_heads=(1, 2, 2, 4), init_values=(1.0,) * 4, head_dim=16, **_FOUR),
    "nat": dict(embed_dim=8, num_heads=(1, 2, 2, 4), kernel_size=3, dilations=((1,), (2,), (1,), (1,)), **_FOUR),
    "nat_isotropic": dict(embed_dim=8, depth=2, num_heads=2, kernel_size=3),
    "overlock": dict(
        embed_dims=(8, 8, 16, 16), focus_depths=(1, 1), num_heads=(1, 2), head_dim=16, kernel_sizes=(7,) * 4, **_FOUR
    ),
    "s2aformer": dict(embed_dims=(8, 8, 16, 16), num_heads=(1, 2, 2, 4), head_width=16, **_FOUR),
    "sparsifiner": dict(embed_dim=8, depth=2, num_heads=2, basis_coef_topk=2),
    "van": dict(embed_dims=(8, 8, 16, 16), mlp_ratios=(2, 2, 2, 2), **_FOUR),
    "vit_gqa": dict(embed_dim=8, depth=2, num_heads=2, num_kv_heads=1),
}


def family(name: str) -> str:
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


NAMES: dict[str, list[str]] = {}
for _name in attnzoo.zoo.list_models():
    NAMES.setdefault(family(_name), []).append(_name)

_NUMBER = st.sampled_from(_NUMBERS)
_COUNTS = st.lists(st.sampled_from((1, 2, 4, 0, -1)), min_size=0, max_size=5).map(tuple)
_FOUR_COUNTS = st.lists(st.sampled_from((1, 2, 4, 0, -1)), min_size=4, max_size=4).map(tuple)
_WIDTH = st.sampled_from((-8, 0, 1, 4, 7, 8, 12, 16))
_RATE = st.sampled_from((-0.1, 0.0, 0.1, 0.5, 1.0, 1.5, float("nan")))
_GRID = st.one_of(_NUMBER, st.tuples(_NUMBER, _NUMBER))
_SIZE = st.one_of(
    st.sampled_from((-1, 0, 1, 7, 16, 32, 64, 100)), st.tuples(*[st.sampled_from((0, 1, 16, 40, 64))] * 2)
)
_PER_STAGE = st.one_of(_COUNTS, _FOUR_COUNTS)
_BY_NAME: dict[str, st.SearchStrategy] = {
    "agent_depth": _NUMBER,
    "agent_depths": _PER_STAGE,
    "agent_grid": st.tuples(_NUMBER, _NUMBER),
    "agent_grids": st.lists(st.tuples(_NUMBER, _NUMBER), min_size=1, max_size=5).map(tuple),
    "attn_keep_rate": _RATE,
    "attn_score_threshold": _RATE,
    "attn_type": st.sampled_from(("gqa", "kdgqa", "dgqa", "pgqa", "mha", "")),
    "basis_coef_threshold": _RATE,
    "basis_coef_topk": _NUMBER,
    "basis_threshold": _RATE,
    "depth": _NUMBER,
    "depths": _PER_STAGE,
    "deploy": st.booleans(),
    "dilation": _NUMBER,
    "dilations": st.lists(_COUNTS, max_size=5).map(tuple),
    "drop_path_rate": _RATE,
    "drop_rate": _RATE,
    "embed_dim": _WIDTH,
    "embed_dims": st.lists(_WIDTH, max_size=5).map(tuple),
    "focus_depths": _COUNTS,
    "full_attn_heads": _NUMBER,
    "full_attn_lepe": st.sampled_from(("x", "v", "q", "")),
    "global_pool": st.sampled_from(("avg", "max", "avgmax", "token", "", "mean")),
    "head_dim": _WIDTH,
    "head_width": _WIDTH,
    "img_size": _SIZE,
    "in_chans": st.sampled_from((-1, 0, 1, 3, 5)),
    "kernel_size": _NUMBER,
    "kernel_sizes": st.lists(st.sampled_from((7, 13, 15, 17, 3, 0, -1)), max_size=5).map(tuple),
    "lepe_kernel": _NUMBER,
    "lim_kernel": _NUMBER,
    "linear_stages": _NUMBER,
    "mlp_ratio": st.sampled_from((-1.0, 0.0, 0.5, 2.0)),
    "mlp_ratios": st.lists(st.sampled_from((-1, 0, 1, 2)), max_size=5).map(tuple),
    "num_agents": _GRID,
    "num_basis": _NUMBER,
    "num_classes": st.sampled_from((-1, 0, 1, 7)),
    "num_heads": _NUMBER,
    "num_kv_heads": _NUMBER,
    "num_regions": _NUMBER,
    "patch_merging": st.booleans(),
    "patch_size": st.sampled_from((-1, 0, 1, 3, 8, 16)),
    "proj_drop_rate": _RATE,
    "qk_dim": _NUMBER,
    "qkv_bias": st.booleans(),
    "reduce_c_factor": _NUMBER,
    "reduce_n_factor": _NUMBER,
    "reductions": _PER_STAGE,
    "smk_size": _NUMBER,
    "split_size": _NUMBER,
    "stl": st.booleans(),
    "token_keep_rate": _RATE,
    "token_pruning_loc": st.lists(st.sampled_from((-1, 0, 1, 2, 9)), max_size=3).map(tuple),
    "topks": st.lists(st.sampled_from((-1, 0, 1, 4, 9, 10)), max_size=5).map(tuple),
    "update": st.sampled_from(("ema", "diff", "none")),
    "window_size": _NUMBER,
}


def argument(name: str, tiny: dict[str, Any]) -> st.SearchStrategy:
    """Values of one constructor argument: as many as stages where it is one a stage."""
    if name in ("num_heads", "num_agents", "embed_dims") and isinstance(tiny.get(name), tuple):
        one = {"num_heads": _NUMBER, "num_agents": _GRID, "embed_dims": _WIDTH}[name]
        length = len(tiny[name])
        return st.one_of(st.lists(one, max_size=5), st.lists(one, min_size=length, max_size=length)).map(tuple)
    return _BY_NAME[name]


def arguments(parameters: list[str]) -> list[str]:
    """The constructor's arguments that are fuzzed."""
    return [name for name in parameters if name in _BY_NAME]
