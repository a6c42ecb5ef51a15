"""What the four agent attention families share: their cut of the biases and checkpoints of another size."""

from torch import Tensor, nn

from ..layers import AgentAttention
from ..layers.agent import resize_agents, resize_map, squarest

BIASES = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias", "ac_bias", "ca_bias")


def fit_position_biases(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state, under the zoo's names, with agent biases as the model has them.

    Published ones begin with an axis of one, which goes; those for another map or number of agents are resized.
    """
    fitted = dict(state_dict)
    for name, module in model.named_modules():
        if not isinstance(module, AgentAttention):
            continue
        for leaf in BIASES:
            value, own = fitted.get(f"{name}.{leaf}"), getattr(module, leaf)
            if value is None or own is None:
                continue
            value = value.squeeze(0) if value.ndim > own.ndim else value
            fits = value.shape == own.shape
            fitted[f"{name}.{leaf}"] = value if fits else _resized(leaf, value, own, module.trained_grid)
    return fitted


def _resized(leaf: str, value: Tensor, own: Tensor, agents: tuple[int, int]) -> Tensor:
    value, own = _agents_first(leaf, value), _agents_first(leaf, own)
    value = resize_agents(value, squarest(value.shape[-3]), agents)
    return _agents_last(leaf, resize_map(value, tuple(own.shape[-2:])))


def _agents_first(leaf: str, bias: Tensor) -> Tensor:
    """Any bias as [heads, agents, rows, columns]."""
    if leaf in ("ac_bias", "ca_bias"):
        return (bias if leaf == "ac_bias" else bias.transpose(-2, -1))[..., None]
    return bias.movedim(-1, -3) if leaf in ("ha_bias", "wa_bias") else bias


def _agents_last(leaf: str, bias: Tensor) -> Tensor:
    """Undoes :func:`_agents_first`."""
    if leaf in ("ac_bias", "ca_bias"):
        return bias[..., 0] if leaf == "ac_bias" else bias[..., 0].transpose(-2, -1)
    return bias.movedim(-3, -1) if leaf in ("ha_bias", "wa_bias") else bias
