"""Agent attention (Han et al. 2024, "Agent Attention", arXiv 2312.08874)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from ..kernels import agent_attention
from ._checks import check_heads, check_odd
from ._windows import pad_to_windows

_TABLE = (7, 7)


def squarest(count: int) -> tuple[int, int]:
    """Rows and columns of the squarest grid of ``count`` cells, never more rows than columns."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows


def resize_map(bias: Tensor, size: tuple[int, int]) -> Tensor:
    """[heads, agents, y, x] → [heads, agents, *size], bilinear; the bias itself where it has this size."""
    if tuple(bias.shape[-2:]) == tuple(size):
        return bias
    return F.interpolate(bias, size=size, mode="bilinear", align_corners=False)


def resize_agents(bias: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """[heads, agents, y, x] for a grid of ``old`` agents → the same for ``new`` ones, bilinear."""
    if old == new:
        return bias
    size = bias.shape[-2:]
    bias = bias.flatten(-2).transpose(1, 2).unflatten(2, old)
    resized = F.interpolate(bias, size=new, mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2).unflatten(2, size)


class AgentAttention(nn.Module):
    """Attention through a few agents, the queries pooled to a small grid; linear in the number of tokens.

    Agents gather the values and every token reads from the agents (equation 5), both with learned position biases; a
    depth-wise convolution of the values is added. Works on maps of any size, on windows of them, and on tokens, with
    or without a class token: biases are resized to the map that comes in.

    The biases keep their published names: ``an``, ``ah``, ``aw`` on the agents' scores with the tokens (7×7 table,
    rows, columns), ``na``, ``ha``, ``wa`` on the tokens' scores with the agents, ``ac`` and ``ca`` for a class token.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        grid_size: map that the row and column biases are made for, one size or (H, W).
        num_agents: agents that the biases are made for, a number or a grid (rows, columns); a number becomes the
            squarest grid.
        agent_grid: grid of the agents in use, to which the biases are resized; None is that of ``num_agents``. The
            published dense models use larger grids than they were pretrained with.
        window_size: attend inside windows of this size, one or (H, W), a map being padded with zeros at the bottom
            and right; None is the whole map. ``grid_size`` is then a window's.
        qkv_bias: give the q, k, v projection a bias.
        class_token: the first token is a class token: it attends, has biases of its own, and is neither pooled nor
            convolved.
        kernel_size: odd size of the depth-wise convolution.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        grid_size: int | tuple[int, int] = 14,
        num_agents: int | tuple[int, int] = 49,
        agent_grid: tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
        qkv_bias: bool = True,
        class_token: bool = False,
        kernel_size: int = 3,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        check_odd("kernel_size", kernel_size)
        if class_token and window_size is not None:
            raise ValueError(f"class_token=True does not go with window_size={window_size}")
        self.num_heads = num_heads
        self.grid_size = _sides(grid_size, "grid_size")
        self.trained_grid = _agent_grid(num_agents)
        self.agent_grid = self.trained_grid if agent_grid is None else _sides(agent_grid, "agent_grid")
        self.window_size = None if window_size is None else _sides(window_size, "window_size")
        self.num_prefix_tokens = int(class_token)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.dwc = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

        def bias(*shape: int) -> nn.Parameter:
            return nn.Parameter(trunc_normal_(torch.empty(*shape, **dd), std=0.02))

        agents = math.prod(self.trained_grid)
        height, width = self.grid_size
        self.an_bias = bias(num_heads, agents, *_TABLE)
        self.na_bias = bias(num_heads, agents, *_TABLE)
        self.ah_bias = bias(num_heads, agents, height, 1)
        self.aw_bias = bias(num_heads, agents, 1, width)
        self.ha_bias = bias(num_heads, height, 1, agents)
        self.wa_bias = bias(num_heads, 1, width, agents)
        self.ac_bias = bias(num_heads, agents, 1) if class_token else None
        self.ca_bias = bias(num_heads, 1, agents) if class_token else None

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """A map [B, H, W, C] or tokens [B, N, C], a class token first where the layer has one → the same shape.

        Args:
            grid: (H, W) of the map that the tokens are; None is the layer's ``grid_size`` where their number fits it,
                else the squarest grid of so many.

        Raises:
            ValueError: the number of tokens is not H·W.
        """
        if x.ndim == 4:
            size = (x.shape[1], x.shape[2])
            x = self._tokens(x.flatten(1, 2), size) if self.window_size is None else self._windows(x)
            return x.unflatten(1, size) if x.ndim == 3 else x
        count = x.shape[1] - self.num_prefix_tokens
        if grid is None:
            grid = self.grid_size if count == math.prod(self.grid_size) else squarest(count)
        if grid[0] * grid[1] != count:
            raise ValueError(f"{count} tokens are not a map of grid={tuple(grid)}")
        return self._tokens(x, grid)

    def position_biases(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Biases for a map of ``grid`` (H, W), agents to tokens [heads, n, N], tokens to agents [heads, N, n]."""
        agent_bias = self._spread(self.an_bias, self.ah_bias, self.aw_bias, grid).flatten(-2)
        rows, columns = (bias.movedim(-1, -3) for bias in (self.ha_bias, self.wa_bias))
        query_bias = self._spread(self.na_bias, rows, columns, grid).flatten(-2)
        if self.num_prefix_tokens:
            agent_bias = torch.cat([self._spread_class(self.ac_bias), agent_bias], dim=-1)
            query_bias = torch.cat([self._spread_class(self.ca_bias.transpose(-2, -1)), query_bias], dim=-1)
        return agent_bias, query_bias.transpose(-2, -1)

    def _spread(self, table: Tensor, rows: Tensor, columns: Tensor, grid: Sequence[int]) -> Tensor:
        """Table [heads, n, 7, 7] + rows [heads, n, H, 1] + columns [heads, n, 1, W] → [heads, n, *grid]."""
        sizes = (tuple(grid), (grid[0], 1), (1, grid[1]))
        parts = (resize_agents(bias, self.trained_grid, self.agent_grid) for bias in (table, rows, columns))
        table, rows, columns = (resize_map(bias, size) for bias, size in zip(parts, sizes, strict=True))
        return table + (rows + columns)

    def _spread_class(self, bias: Tensor) -> Tensor:
        """[heads, n, 1], resized to the agents in use."""
        return resize_agents(bias[..., None], self.trained_grid, self.agent_grid)[..., 0]

    def _agents(self, q: Tensor, grid: Sequence[int]) -> Tensor:
        """Queries [B, prefix + H·W, heads, D] pooled to the agents [B, n, heads, D]."""
        q = q[:, self.num_prefix_tokens :].flatten(2).transpose(1, 2).unflatten(2, tuple(grid))
        return F.adaptive_avg_pool2d(q, self.agent_grid).flatten(2).transpose(1, 2).unflatten(2, (self.num_heads, -1))

    def _convolved(self, v: Tensor, grid: Sequence[int]) -> Tensor:
        """The depth-wise convolution of the values [B, prefix + H·W, heads, D] → [B, prefix + H·W, C]."""
        v = v[:, self.num_prefix_tokens :].flatten(2).transpose(1, 2).unflatten(2, tuple(grid))
        v = self.dwc(v).flatten(2).transpose(1, 2)
        return F.pad(v, (0, 0, self.num_prefix_tokens, 0)) if self.num_prefix_tokens else v

    def _tokens(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        agent_bias, query_bias = self.position_biases(grid)
        agents = self._agents(q, grid)
        x = agent_attention(q, k, v, agents, agent_bias=agent_bias, query_bias=query_bias).flatten(2)
        return self.proj_drop(self.proj(x + self._convolved(v, grid)))

    def _windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window = self.window_size
        x = pad_to_windows(x, window)
        x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0])).transpose(2, 3)
        batch, rows, columns = x.shape[:3]
        x = self._tokens(x.flatten(3, 4).flatten(0, 2), window)
        x = x.unflatten(0, (batch, rows, columns)).unflatten(3, window).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, grid_size={self.grid_size}, agent_grid={self.agent_grid}"


def _sides(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    sides = tuple(to_2tuple(value))
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"{name}={value} is not one or two numbers of at least 1")
    return sides


def _agent_grid(num_agents: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(num_agents, int):
        if num_agents < 1:
            raise ValueError(f"num_agents={num_agents} is below 1")
        return squarest(num_agents)
    return _sides(num_agents, "num_agents")
