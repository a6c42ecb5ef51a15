"""OverLoCK's published checkpoints under the zoo's names, with or without merged convolutions."""

from torch import Tensor, nn

from ..layers import DilatedReparamConv
from ._blocks import rename_keys

_STAGES = {
    **{"blocks1": "stages.0.blocks", "blocks2": "stages.1.blocks", "blocks3": "stages.2.blocks"},
    **{"blocks4": "stages.2.overview.blocks", "sub_blocks3": "stages.2.focus.blocks", "sub_blocks4": "stages.3.blocks"},
}
_DOWNSAMPLES = {"2": "stages.1", "3": "stages.2", "4": "stages.2.overview"}
_STEM = {str(3 * i + j): f"{name}{i + 1}" for i in range(4) for j, name in enumerate(("conv", "norm"))}
_CONV_NORM = {"0": "conv", "1": "norm"}
_REP_CONV = {
    "0": "norm",
    "1": "conv",
    "2": "conv_norm",
    "4": "mlp.fc1",
    "6": "mlp.dwconv",
    "7": "mlp.grn",
    "8": "mlp.fc2",
}
_MLP = {"0": "fc1", "2": "dwconv", "3": "grn", "4": "fc2"}
_FUSION = {"0": "dwconv", "1": "norm", "3": "proj", "4": "grn"}
_RULES = [
    (r"^patch_embed1\.(\d+)\.", lambda m: f"stem.{_STEM[m[1]]}."),
    (r"^patch_embed([234])\.(\d)\.", lambda m: f"{_DOWNSAMPLES[m[1]]}.downsample.{_CONV_NORM[m[2]]}."),
    (r"^high_level_proj\.", "stages.2.ctx_proj."),
    (r"^patch_embedx\.x_proj\.(\d)\.", lambda m: f"stages.3.downsample.map.{_CONV_NORM[m[1]]}."),
    (r"^patch_embedx\.h_proj\.(\d)\.", lambda m: f"stages.3.downsample.context.{_CONV_NORM[m[1]]}."),
    (r"\b(?:se_layer|proj\.3)\.proj\.([13])\.", lambda m: f"se.fc{(int(m[1]) + 1) // 2}."),
    (r"^(blocks\d\.\d+)\.proj\.(\d)\.", lambda m: f"{m[1]}.{_REP_CONV[m[2]]}."),
    (r"^(sub_blocks\d\.\d+)\.mlp\.(\d)\.", lambda m: f"{m[1]}.mlp.{_MLP[m[2]]}."),
    (r"\.fusion\.(\d)\.", lambda m: f".fusion.{_FUSION[m[1]]}."),
    (r"^(sub_blocks\d\.\d+)\.proj\.0\.", r"\1.attn.norm."),
    (r"^(sub_blocks\d\.\d+)\.proj\.1\.", r"\1.attn.proj."),
    (r"^(sub_blocks\d\.\d+)\.se\.", r"\1.attn.se."),
    (r"\.rpb1$", ".attn.contmix.rel_pos_bias_small"),
    (r"\.rpb2$", ".attn.contmix.rel_pos_bias"),
    (r"\.weight_query\.(\d)\.", lambda m: f".attn.contmix.query.{_CONV_NORM[m[1]]}."),
    (r"\.weight_key\.([12])\.", lambda m: f".attn.contmix.key.{'conv' if m[1] == '1' else 'norm'}."),
    (r"\.weight_proj\.", ".attn.contmix.weight_proj."),
    (r"\.dyconv_proj\.(\d)\.", lambda m: f".attn.contmix.proj.{_CONV_NORM[m[1]]}."),
    (r"\.gate\.(\d)\.", lambda m: f".attn.gate.{_CONV_NORM[m[1]]}."),
    (r"\.lepe\.0\.", ".attn.lepe."),
    (r"\.lepe\.1\.", ".attn.lepe_norm."),
    (r"\.x_scale\.", ".context_scale."),
    (r"\.h_scale\.", ".prior_scale."),
    (r"\.((?:context_scale|prior_scale|ls[12]?))\.weight$", r".\1.gamma"),
    (r"\.((?:context_scale|prior_scale|ls[12]?))\.bias$", r".\1.beta"),
    (r"\.grn\.gamma$", ".grn.weight"),
    (r"\.grn\.beta$", ".grn.bias"),
    (r"\.dil_conv_(k\d+_\d+)\.", r".branches.\1.conv."),
    (r"\.dil_bn_(k\d+_\d+)\.", r".branches.\1.norm."),
    (r"\.origin_bn\.", ".large.norm."),
    (r"^((?:sub_)?blocks\d)\.", lambda m: f"{_STAGES[m[1]]}."),
    (r"^aux_head\.0\.", "aux_head.norm."),
    (r"^aux_head\.2\.", "aux_head.fc."),
    (r"^head\.0\.", "head_proj.conv."),
    (r"^head\.1\.", "head_proj.norm."),
    (r"^head\.4\.", "head."),
]
_VECTORS = (".gamma", ".grn.weight", ".grn.bias")
_LINEAR = (".weight_proj.weight", "aux_head.fc.weight", "head.weight")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published OverLoCK parameter names → the zoo's; branches are merged where the model was built merged."""
    if any(key.startswith("patch_embed1.") for key in state_dict):
        merged = any(key.endswith(".lk_origin.bias") for key in state_dict)
        rules = [*_RULES, (r"\.lk_origin\.", ".conv." if merged else ".large.conv.")]
        state_dict = {
            key: value.flatten() if key.endswith(_VECTORS) else value.flatten(1) if key.endswith(_LINEAR) else value
            for key, value in rename_keys(state_dict, rules).items()
        }
    for name, module in model.named_modules():
        if isinstance(module, DilatedReparamConv):
            _fit_branches(state_dict, f"{name}.", module)
    return state_dict


def _fit_branches(state_dict: dict[str, Tensor], prefix: str, module: DilatedReparamConv) -> None:
    """Merge the branches in ``state_dict`` if ``module`` has none."""
    branched = f"{prefix}large.conv.weight" in state_dict
    if not branched and module.conv is None and f"{prefix}conv.weight" in state_dict:
        raise ValueError("the checkpoint's large convolutions are merged; a model built with deploy=True takes them")
    if not branched or module.conv is None:
        return
    branches = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    weight = branches[f"{prefix}large.conv.weight"]
    whole = DilatedReparamConv(len(weight), module.kernel_size, dtype=weight.dtype)
    whole.load_state_dict({key.removeprefix(prefix): value for key, value in branches.items()})
    whole.reparameterize()
    state_dict.update({prefix + key: value for key, value in whole.state_dict().items()})
