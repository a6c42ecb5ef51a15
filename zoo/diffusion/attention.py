"""Self-attention of a diffusers block with agents, merged tokens or fewer keys in its place.

Agents: Han et al., "Agent Attention", arXiv:2312.08874, section 4.4, and the published AgentSD. Merging:
arXiv:2303.17604. Subsampled keys and values: Smith et al., "ToDo: Token Downsampling", arXiv:2402.13573.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

from ...kernels import agent_attention
from .merging import match_tokens, merge_tokens, unmerge_tokens
from .settings import SOFTMAX, Stage
from .tokens import plan_tokens

if TYPE_CHECKING:
    from .schedule import Schedule

# Any other one computes something else on purpose (PAG's perturbed attention, say), which must not be replaced.
PLAIN_PROCESSORS = (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)

# By function: super() fails once the class is put back, and Dynamo does not look into Attention called by its name.
_plain_forward = Attention.forward


class Slot:
    """What a patched module knows: no parameters and no modules, so that state dictionaries stay as they are.

    Args:
        schedule: says what is computed now; one for the whole model.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.grid = (0, 0)
        self.x: Tensor | None = None
        self.noise: Tensor | None = None

    def take_input(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook before the block: tokens are ranked by what enters it, which the attention does not see."""
        self.x = args[0] if args else kwargs["hidden_states"]

    def pop_input(self) -> Tensor | None:
        x, self.x = self.x, None
        return x

    def drawn(self) -> Tensor | None:
        """Uniform numbers of the latents' size for this step, where there are any."""
        self.schedule.draw_for_graph()
        return self.noise


class AgentSelfAttention(Attention):
    """diffusers' ``Attention`` whose self-attention follows its slot's stage; without a slot, ``Attention`` itself."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """``[B, N, C]`` → ``[B, N, C]``, of the same dtype."""
        slot = getattr(self, "agent_slot", None)
        if slot is not None:
            x, stage = slot.pop_input(), slot.schedule.stage
            plain = encoder_hidden_states is None and attention_mask is None and hidden_states.ndim == 3
            height, width = slot.grid
            fits = plain and hidden_states.shape[1] == height * width
            if fits and stage.kind != "softmax" and type(self.processor) in PLAIN_PROCESSORS:
                # As published: one choice for a guided pair, none for an odd batch.
                noise = slot.drawn() if stage.random and hidden_states.shape[0] % 2 == 0 else None
                choice = None if noise is None else _choose(noise, slot.grid, stage.cell)
                return attend(self, hidden_states, x, slot.grid, stage, choice, **cross_attention_kwargs)
        return _plain_forward(self, hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs)


def _choose(noise: Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """Uniform numbers [rows, columns] → the position of each cell's destination in it."""
    area = cell[0] * cell[1]
    return (noise[: grid[0] // cell[0], : grid[1] // cell[1]] * area).long().clamp(max=area - 1)


def attend(
    attn: Attention,
    y: Tensor,
    x: Tensor | None,
    grid: tuple[int, int],
    stage: Stage = SOFTMAX,
    choice: Tensor | None = None,
    **cross_attention_kwargs: Any,
) -> Tensor:
    """What takes the place of ``attn(y)`` in a block.

    Args:
        attn: a diffusers ``Attention``.
        y: its input ``[B, H * W, C]``.
        x: what tokens are compared by ``[B, H * W, C]``: the block's input, before its first norm; y where None.
        grid: H and W.
        stage: what to compute.
        choice: see :func:`~attnzoo.zoo.diffusion.merging.match_tokens`.
        **cross_attention_kwargs: for the processor.

    Returns:
        ``[B, H * W, C]`` of y's dtype.
    """
    plan = plan_tokens(stage, *grid)
    if stage.kind == "todo" and plan.cells:
        return _attend_subsampled(attn, y, grid, stage.cell)
    away = plan.merged_away
    matching = None
    if away or plan.agents_merged_away:
        matching = match_tokens(y if x is None else x, grid, stage.cell, choice)
    features = merge_tokens(y, matching, away) if away else y
    if plan.agents is None:
        out = _plain_forward(attn, features, **cross_attention_kwargs)
    else:
        if plan.agent_grid is not None:
            agents = _cell_means(y, grid, plan.agent_grid)
        else:
            agents = merge_tokens(y, matching, plan.agents_merged_away) if plan.agents_merged_away else y
        out = attend_agents(attn, features, agents, stage.score_power, stage.shortcut)
    return unmerge_tokens(out, matching, away) if away else out


def attend_agents(
    attn: Attention, features: Tensor, agents: Tensor, score_power: float = 0.3, shortcut: float = 0.075
) -> Tensor:
    """Agent attention with the module's projections; softmax attention where 2 n is not below M.

    With agents A, queries, keys and values Q, K, V of the features, and heads of d channels,

        to_out(softmax(d^(-score_power / 2) Q A^T) softmax(d^(-1/2) A K^T) V + shortcut V)

    Args:
        attn: a diffusers ``Attention``.
        features: ``[B, M, C]``.
        agents: ``[B, n, C]``, of the same dtype; projected as queries are.
        score_power: see above.
        shortcut: see above.

    Returns:
        ``[B, M, C]``.
    """
    if 2 * agents.shape[1] >= features.shape[1]:
        return _plain_forward(attn, features)
    q, k, v = (_heads(attn, projection(features)) for projection in (attn.to_q, attn.to_k, attn.to_v))
    a = _heads(attn, attn.to_q(agents))
    scale = q.shape[-1] ** -0.5
    # Only the second softmax sees the queries, so that its own scale can go into them.
    out = agent_attention(q * (scale ** (score_power - 1)), k, v, a, scale=scale) + shortcut * v
    return _project_out(attn, out)


def _attend_subsampled(attn: Attention, y: Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """Softmax attention whose keys and values are one token of each cell."""
    fewer = y.unflatten(1, grid)[:, :: cell[0], :: cell[1]].flatten(1, 2)
    q, k, v = (_heads(attn, projected) for projected in (attn.to_q(y), attn.to_k(fewer), attn.to_v(fewer)))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return _project_out(attn, out.transpose(1, 2))


def _heads(attn: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))


def _project_out(attn: Attention, out: Tensor) -> Tensor:
    for layer in attn.to_out:
        out = layer(out.flatten(2) if out.ndim == 4 else out)
    return out


def _cell_means(y: Tensor, grid: tuple[int, int], agent_grid: tuple[int, int]) -> Tensor:
    y = y.transpose(1, 2).unflatten(2, grid)
    return F.adaptive_avg_pool2d(y, agent_grid).flatten(2).transpose(1, 2)
