"""How many tokens and agents a stage leaves on a grid, and what its attention costs, by arithmetic alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import Stage


@dataclass(frozen=True)
class TokenPlan:
    """Token counts of one block.

    Args:
        tokens: of the grid.
        cells: destinations of merging.
        merged_away: tokens merged before the attention.
        agents: agent tokens; None where there are too many for them to save anything, or none are wanted.
        agents_merged_away: tokens merged to make the agents.
        agent_grid: rows and columns of agents that are means of cells.
    """

    tokens: int
    cells: int = 0
    merged_away: int = 0
    agents: int | None = None
    agents_merged_away: int = 0
    agent_grid: tuple[int, int] | None = None

    @property
    def features(self) -> int:
        """Tokens the attention works on."""
        return self.tokens - self.merged_away


def plan_tokens(stage: Stage, height: int, width: int) -> TokenPlan:
    """Counts for a grid: as many tokens are merged as asked for and as there are besides the destinations; agents are
    used where twice their number is below the number of features.

    Args:
        stage: what to compute.
        height: rows of tokens.
        width: columns of tokens.
    """
    tokens = height * width
    rows, columns = stage.cell
    cells = (height // rows) * (width // columns)
    if stage.kind == "softmax" or tokens < stage.min_tokens or (cells == 0 and stage.kind == "tome"):
        return TokenPlan(tokens)
    if stage.kind == "todo":
        return TokenPlan(tokens, cells=math.ceil(height / rows) * math.ceil(width / columns))
    sources = tokens - cells if cells else 0
    merged_away = min(sources, int(tokens * stage.merge_ratio))
    if stage.kind == "tome":
        return TokenPlan(tokens, cells, merged_away)
    if stage.agent_source == "grid":
        grid = _agent_grid(stage, height, width)
        agents, away = grid[0] * grid[1], 0
    else:
        grid = None
        wanted = int(tokens * stage.agent_ratio) if stage.agents is None else max(0, tokens - stage.agents)
        away = min(sources, wanted)
        agents = tokens - away
    if 2 * agents < tokens - merged_away:
        return TokenPlan(tokens, cells, merged_away, agents, away, grid)
    return TokenPlan(tokens, cells, merged_away)


def _agent_grid(stage: Stage, height: int, width: int) -> tuple[int, int]:
    if stage.agents is None:
        return math.ceil(height / stage.cell[0]), math.ceil(width / stage.cell[1])
    rows = min(height, stage.agents, max(1, round(math.sqrt(stage.agents * height / width))))
    return rows, min(width, max(1, stage.agents // rows))


def attention_flops(tokens: int, channels: int) -> int:
    """Of both products of softmax self-attention, two a multiply-add."""
    return 4 * tokens * tokens * channels


def projection_flops(tokens: int, channels: int) -> int:
    """Of the query, key, value and output projections."""
    return 8 * tokens * channels * channels


def stage_flops(stage: Stage, height: int, width: int, channels: int) -> int:
    """Of self-attention, projections and matching in one block, for one image."""
    plan = plan_tokens(stage, height, width)
    n = plan.features
    matching = 2 * (plan.tokens - plan.cells) * plan.cells * channels
    if stage.kind == "todo" and plan.cells:
        return 4 * n * plan.cells * channels + projection_flops(n, channels) // 2 + 4 * plan.cells * channels**2
    if plan.agents is None:
        return attention_flops(n, channels) + projection_flops(n, channels) + matching * (plan.merged_away > 0)
    matched = plan.merged_away > 0 or plan.agents_merged_away > 0
    agents = 8 * n * plan.agents * channels + 2 * plan.agents * channels**2
    return agents + projection_flops(n, channels) + matching * matched
