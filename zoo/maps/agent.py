"""Maps of agent attention: tokens to agents, agents to tokens, and the product of both."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import FlatMap, Pixel, exact


@dataclass(kw_only=True, eq=False)
class AgentMap(FlatMap):
    """``softmax(scale * q A^T + query_bias) softmax(scale * A k^T + agent_bias)`` with agents A ``[n, heads, D]``.

    Attributes:
        agent_grid: rows and columns of the agents.
        agent_bias: broadcasts to ``[heads, n, M]``, or None.
        query_bias: broadcasts to ``[heads, N, n]``, or None.
        scale: factor of both scores.
    """

    kind: ClassVar[str] = "agent"
    agent: Tensor
    agent_grid: tuple[int, int]
    agent_bias: Tensor | None
    query_bias: Tensor | None
    scale: float

    def flat_row(self, index: int) -> Tensor:
        return torch.einsum("hn,hnm->hm", self._to_agents(index), self._from_agents())

    def agent_weights(self) -> Tensor:
        """How each agent weighs the keys, ``[heads, n, Hk, Wk]``; with the class token's weight they add up to one."""
        return self._from_agents()[:, :, self.prefix :].unflatten(2, self.key_grid)

    def query_weights(self, query: Pixel | None = None) -> Tensor:
        """How the query weighs the agents, ``[heads, rows, columns]`` of the agents' grid.

        Raises:
            ValueError: the pixel is not in the image.
        """
        row, column = self.token(query)
        return self._to_agents(self.query_prefix + row * self.grid[1] + column).unflatten(1, self.agent_grid)

    def _to_agents(self, index: int) -> Tensor:
        scores = torch.einsum("hd,nhd->hn", exact(self.q[index]) * self.scale, exact(self.agent))
        if self.query_bias is not None:
            bias = self.query_bias
            scores = scores + bias[..., min(index, bias.shape[-2] - 1), :].to(scores)
        return scores.softmax(-1)

    def _from_agents(self) -> Tensor:
        scores = torch.einsum("nhd,mhd->hnm", exact(self.agent) * self.scale, exact(self.k))
        if self.agent_bias is not None:
            scores = scores + self.agent_bias.to(scores)
        return scores.softmax(-1)
