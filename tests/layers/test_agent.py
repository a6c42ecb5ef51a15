"""Agent attention and the window attentions of its families, each against its equations one token at a time."""

import math

import numpy as np
import pytest
import torch
from parity import relative_error

from attnzoo.layers import AgentAttention, CrossShapedWindowAttention, ShiftedWindowAttention
from attnzoo.layers.agent import squarest

F64 = {"dtype": torch.float64}


def make(cls, *args, **kwargs):
    torch.manual_seed(0)
    layer = cls(*args, **kwargs, **F64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.requires_grad_(False)


def array(x):
    return x.detach().numpy()


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def linear(layer, x):
    return x @ array(layer.weight).T + array(layer.bias)


def stretched(row, length):
    """A row of values at cell centres, read linearly at ``length`` cell centres, constant beyond the outermost."""
    old = len(row)
    at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    return np.interp(at, np.arange(old), row)


def stretched_map(table, size):
    rows = np.stack([stretched(column, size[0]) for column in table.T], axis=1)
    return np.stack([stretched(row, size[1]) for row in rows])


def stretched_agents(biases, old, new):
    """[agents, ...] for a grid of ``old`` agents → for ``new``."""
    flat = biases.reshape(*old, -1)
    return np.stack([stretched_map(flat[..., i], new) for i in range(flat.shape[-1])], -1).reshape(
        -1, *biases.shape[1:]
    )


def convolved(image, layer):
    """A depth-wise convolution [H, W, C] with zeros around, position by position."""
    kernel, bias = array(layer.weight)[:, 0], array(layer.bias)
    half = kernel.shape[-1] // 2
    out = np.zeros_like(image) + bias
    height, width = image.shape[:2]
    for y, x in np.ndindex(height, width):
        for dy, dx in np.ndindex(kernel.shape[1:]):
            row, column = y + dy - half, x + dx - half
            if 0 <= row < height and 0 <= column < width:
                out[y, x] += image[row, column] * kernel[:, dy, dx]
    return out


def pooled(image, grid):
    """The means of overlapping cells, from floor(i * H / n) to ceil((i + 1) * H / n)."""
    cells = []
    for i, j in np.ndindex(grid):
        rows, columns = (
            slice(k * side // n, -(-(k + 1) * side // n))
            for k, n, side in zip((i, j), grid, image.shape[:2], strict=True)
        )
        cells.append(image[rows, columns].mean((0, 1)))
    return np.stack(cells)


def agent_attention_by_loops(layer, tokens, grid):
    """Equation 5 with the biases of section 3.3 for one image's tokens [prefix + H·W, C]."""
    prefix, heads = layer.num_prefix_tokens, layer.num_heads
    q, k, v = np.split(linear(layer.qkv, tokens), 3, axis=-1)
    agents = pooled(q[prefix:].reshape(*grid, -1), layer.agent_grid)
    scale = (q.shape[-1] // heads) ** -0.5
    out = []
    for h in range(heads):
        part = slice(h * q.shape[-1] // heads, (h + 1) * q.shape[-1] // heads)
        table, rows, columns = (array(getattr(layer, f"{name}_bias"))[h] for name in ("an", "ah", "aw"))
        agent_bias = _spread(layer, table, rows[:, :, 0], columns[:, 0], grid)
        table, rows, columns = (array(getattr(layer, f"{name}_bias"))[h] for name in ("na", "ha", "wa"))
        query_bias = _spread(layer, table, rows[:, 0].T, columns[0].T, grid)
        if prefix:
            first, second = array(layer.ac_bias)[h], array(layer.ca_bias)[h].T
            first, second = (stretched_agents(x, layer.trained_grid, layer.agent_grid) for x in (first, second))
            agent_bias, query_bias = np.hstack([first, agent_bias]), np.hstack([second, query_bias])
        gathered = [
            softmax(k[:, part] @ (a * scale) + b) @ v[:, part] for a, b in zip(agents[:, part], agent_bias, strict=True)
        ]
        read = [
            softmax(agents[:, part] @ (row * scale) + b) @ gathered
            for row, b in zip(q[:, part], query_bias.T, strict=True)
        ]
        out.append(np.stack(read))
    out = np.concatenate(out, axis=-1)
    out[prefix:] += convolved(v[prefix:].reshape(*grid, -1), layer.dwc).reshape(len(out) - prefix, -1)
    return linear(layer.proj, out)


def _spread(layer, table, rows, columns, grid):
    """Table [n, 7, 7], rows [n, H], columns [n, W] → [agents in use, H·W]."""
    full = np.stack(
        [
            stretched_map(t, grid) + stretched(r, grid[0])[:, None] + stretched(c, grid[1])[None]
            for t, r, c in zip(table, rows, columns, strict=True)
        ]
    )
    return stretched_agents(full, layer.trained_grid, layer.agent_grid).reshape(-1, grid[0] * grid[1])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((6, 6), dict(grid_size=6, num_agents=9)),
        ((7, 5), dict(grid_size=(7, 5), num_agents=4)),
        ((9, 4), dict(grid_size=6, num_agents=9)),
        ((5, 8), dict(grid_size=(6, 3), num_agents=(1, 5))),
        ((4, 7), dict(grid_size=7, num_agents=6, agent_grid=(3, 4))),
        ((6, 6), dict(grid_size=6, num_agents=7, kernel_size=5)),
        ((1, 3), dict(grid_size=4, num_agents=4)),
    ],
    ids=str,
)
def test_agent_attention_on_maps(size, options):
    layer = make(AgentAttention, 12, 3, **options)
    x = torch.randn(2, *size, 12, **F64)
    expected = [agent_attention_by_loops(layer, array(image).reshape(-1, 12), size) for image in x]
    assert relative_error(layer(x), torch.from_numpy(np.stack(expected)).unflatten(1, size)) < 1e-12


@pytest.mark.parametrize("agent_grid", [None, (3, 2)])
@pytest.mark.parametrize(
    ("count", "given", "grid"),
    [(16, None, (4, 4)), (12, (3, 4), (3, 4)), (10, (5, 2), (5, 2)), (10, None, (2, 5)), (7, None, (1, 7))],
)
def test_agent_attention_on_tokens_behind_a_class_token(count, given, grid, agent_grid):
    layer = make(AgentAttention, 8, 2, grid_size=4, num_agents=4, agent_grid=agent_grid, class_token=True)
    x = torch.randn(2, 1 + count, 8, **F64)
    expected = [agent_attention_by_loops(layer, array(image), grid) for image in x]
    assert relative_error(layer(x, given), torch.from_numpy(np.stack(expected))) < 1e-12


def test_tokens_are_the_map_laid_out():
    layer = make(AgentAttention, 8, 2, grid_size=(3, 5), num_agents=4)
    x = torch.randn(2, 3, 5, 8, **F64)
    assert torch.equal(layer(x.flatten(1, 2)), layer(x).flatten(1, 2))
    wide = torch.randn(2, 2, 6, 8, **F64)
    assert torch.equal(layer(wide.flatten(1, 2), (2, 6)), layer(wide).flatten(1, 2))


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_agent_attention_in_windows(size):
    window = (3, 4)
    layer = make(AgentAttention, 8, 2, grid_size=window, num_agents=4, window_size=window)
    whole = make(AgentAttention, 8, 2, grid_size=window, num_agents=4)
    x = torch.randn(2, *size, 8, **F64)
    padded = torch.zeros(2, -(-size[0] // 3) * 3, -(-size[1] // 4) * 4, 8, **F64)
    padded[:, : size[0], : size[1]] = x
    expected = torch.zeros_like(padded)
    for i in range(0, padded.shape[1], 3):
        for j in range(0, padded.shape[2], 4):
            expected[:, i : i + 3, j : j + 4] = whole(padded[:, i : i + 3, j : j + 4])
    assert relative_error(layer(x), expected[:, : size[0], : size[1]]) < 1e-12


@pytest.mark.parametrize(
    ("shift", "size"), [(False, (8, 12)), (True, (8, 12)), (True, (7, 9)), (True, (4, 9))], ids=str
)
def test_shifted_windows(shift, size):
    window, heads, dim = 4, 2, 8
    layer = make(ShiftedWindowAttention, dim, heads, window, shift=shift)
    x = torch.randn(1, *size, dim, **F64)
    height, width = (-(-n // window) * window for n in size)
    padded = np.zeros((height, width, dim))
    padded[: size[0], : size[1]] = array(x[0])
    q, k, v = np.split(linear(layer.qkv, padded), 3, axis=-1)
    moved = window // 2 if shift and min(size) > window else 0
    table = array(layer.rel_pos_bias)

    def window_of(position):
        return tuple((n - moved) // window for n in position)

    out = np.zeros_like(padded)
    positions = list(np.ndindex(height, width))
    for p in positions:
        near = [n for n in positions if window_of(n) == window_of(p)]
        for h in range(heads):
            part = slice(h * dim // heads, (h + 1) * dim // heads)
            scores = [
                q[p][part] @ k[n][part] * (dim // heads) ** -0.5
                + table[h, p[0] - n[0] + window - 1, p[1] - n[1] + window - 1]
                for n in near
            ]
            out[p][part] = softmax(np.array(scores)) @ np.stack([v[n][part] for n in near])
    expected = linear(layer.proj, out)[: size[0], : size[1]]
    assert relative_error(layer(x)[0], torch.from_numpy(expected)) < 1e-12


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 3)])
def test_cross_shaped_windows(size):
    split, heads, dim = 3, 4, 16
    layer = make(CrossShapedWindowAttention, dim, heads, split)
    x = torch.randn(1, *size, dim, **F64)
    q, k, v = np.split(linear(layer.qkv, array(x[0])), 3, axis=-1)
    out = np.zeros_like(q)
    positions = list(np.ndindex(*size))
    for h in range(heads):
        axis = 1 if h < heads // 2 else 0
        part = slice(h * dim // heads, (h + 1) * dim // heads)
        for p in positions:
            near = [n for n in positions if n[axis] // split == p[axis] // split]
            scores = [q[p][part] @ k[n][part] * (dim // heads) ** -0.5 for n in near]
            out[p][part] = softmax(np.array(scores)) @ np.stack([v[n][part] for n in near])
    for start in range(0, size[1], split):
        stripe = np.s_[:, start : start + split, : dim // 2]
        out[stripe] += convolved(v[stripe], layer.lepe[0])
    for start in range(0, size[0], split):
        stripe = np.s_[start : start + split, :, dim // 2 :]
        out[stripe] += convolved(v[stripe], layer.lepe[1])
    assert relative_error(layer(x)[0], torch.from_numpy(linear(layer.proj, out))) < 1e-12


LAYERS = {
    "agent": (AgentAttention, dict(num_heads=2, grid_size=4, num_agents=4)),
    "windowed agent": (AgentAttention, dict(num_heads=2, grid_size=3, num_agents=4, window_size=3)),
    "shifted windows": (ShiftedWindowAttention, dict(num_heads=2, window_size=3, shift=True)),
    "cross-shaped windows": (CrossShapedWindowAttention, dict(num_heads=2, split_size=3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    cls, options = LAYERS[name]
    layer = make(cls, 4, **options)
    state = {key: value.requires_grad_() for key, value in layer.state_dict().items()}
    x = torch.randn(1, 4, 5, 4, **F64, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(state, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *state.values()), fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch_meta_strides_and_autocast(name):
    cls, options = LAYERS[name]
    layer = make(cls, 8, **options)
    assert layer(torch.zeros(0, 5, 7, 8, **F64)).shape == (0, 5, 7, 8)
    x = torch.randn(2, 8, 5, 7, **F64).permute(0, 2, 3, 1)
    assert relative_error(layer(x), layer(x.contiguous())) < 1e-14
    assert cls(8, **options, device="meta")(torch.zeros(1, 5, 7, 8, device="meta")).shape == (1, 5, 7, 8)
    layer = cls(8, **options)
    image = torch.randn(1, 33, 41, 8) * 20
    exact = layer(image)
    for dtype, tolerance in ((torch.bfloat16, 3e-2), (torch.float16, 1e-2)):
        with torch.autocast("cpu", dtype):
            found = layer(image)
        assert found.isfinite().all()
        assert relative_error(found.double(), exact.double()) < tolerance


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (9, (3, 3)), (12, (3, 4)), (13, (1, 13)), (48, (6, 8))])
def test_squarest(count, grid):
    assert squarest(count) == grid
    assert math.prod(grid) == count


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (AgentAttention, dict(num_heads=3), "num_heads=3 does not divide dim=8"),
        (AgentAttention, dict(num_agents=0), "num_agents=0 is below 1"),
        (AgentAttention, dict(num_agents=(3, 0)), r"num_agents=\(3, 0\)"),
        (AgentAttention, dict(agent_grid=(0, 2)), r"agent_grid=\(0, 2\)"),
        (AgentAttention, dict(grid_size=0), "grid_size=0"),
        (AgentAttention, dict(window_size=-1), "window_size=-1"),
        (AgentAttention, dict(kernel_size=4), "kernel_size=4 is not odd"),
        (AgentAttention, dict(class_token=True, window_size=2), "class_token=True does not go with window_size=2"),
        (ShiftedWindowAttention, dict(num_heads=3), "num_heads=3 does not divide dim=8"),
        (ShiftedWindowAttention, dict(num_heads=2, window_size=0), "window_size=0 is below 1"),
        (CrossShapedWindowAttention, dict(num_heads=1), "num_heads=1 is not an even number that divides dim=8"),
        (CrossShapedWindowAttention, dict(num_heads=2, split_size=0), "split_size=0 is below 1"),
    ],
)
def test_arguments(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(8, **options)


def test_tokens_that_are_no_map():
    layer = make(AgentAttention, 8, 2, grid_size=4, num_agents=4)
    with pytest.raises(ValueError, match=r"11 tokens are not a map of grid=\(3, 4\)"):
        layer(torch.zeros(1, 11, 8, **F64), (3, 4))
