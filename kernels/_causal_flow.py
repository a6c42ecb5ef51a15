"""Causal flow-attention on a CPU without a gradient: a segment of the sequence at a time, in buffers.

What a segment needs of earlier ones are sums over them, which are carried along: memory does not grow with the length.
Inside a segment pairs are multiplied chunk by chunk; its chunks are batched but for the values' states, one after
another in one buffer.
"""

from __future__ import annotations

import math

import torch

from ._checks import compute_dtype
from ._chunks import one_block
from ._flow_in_place import sigmoid

# Tokens of a chunk: of a longer one more pairs are multiplied for nothing, shorter ones make smaller products.
_CHUNK = 32
# Tokens of a segment, and what the features of its queries may take, for every thread.
_SEGMENT = 512
_BUFFER_BYTES = 2**21


def causal_flow_in_place(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float
) -> torch.Tensor:
    """The result of the causal :func:`.flow.flow_attention`: q, k ``[B, N, heads, D]``, v ``[B, N, heads, Dv]``."""
    out = v.new_empty(v.shape)
    if not out.numel():
        return out
    maps = [x.transpose(1, 2) for x in (q, k, v, out)]
    buffers = _Buffers(q, v)
    for images in zip(*(x.split(buffers.images) for x in maps), strict=True):
        sequence = _Sequence(buffers, len(images[0]), q.shape[-1] * eps**2 + outer_eps, eps)
        for segment in zip(*(x.split(buffers.tokens, 2) for x in images), strict=True):
            sequence.extend(*segment)
    return out


class _Buffers:
    """Room for a segment of ``tokens`` of some ``images``, all heads."""

    def __init__(self, q: torch.Tensor, v: torch.Tensor) -> None:
        batch, length, heads, width = q.shape
        dtype = compute_dtype(q.dtype)
        self.tokens = min(_SEGMENT, -(-length // _CHUNK) * _CHUNK)
        image_bytes = heads * self.tokens * width * dtype.itemsize
        self.images = min(max(1, _BUFFER_BYTES * torch.get_num_threads() // image_bytes), max(1, batch))
        sequences, chunks = (self.images, heads), self.images * heads * self.tokens // _CHUNK
        features, pairs = (*sequences, self.tokens, width), (chunks, _CHUNK, _CHUNK)
        chunk, state = (*sequences, _CHUNK, v.shape[-1]), (*sequences, width, v.shape[-1])
        shapes = (features, features, pairs, pairs, chunk, chunk, state)
        memory = one_block(q.new_empty(0, dtype=dtype), *map(math.prod, shapes))
        self.queries, self.keys, self.to_queries, self.to_keys, self.values, self.results, self.state = (
            x.view(shape) for x, shape in zip(memory, shapes, strict=True)
        )
        # What is not filled at the sequence's end is multiplied by zeros.
        self.values.zero_()


class _Sequence:
    """Some images, all of whose heads are one axis, G; extended by segments of T tokens in chunks of C."""

    def __init__(self, buffers: _Buffers, images: int, constant: float, eps: float) -> None:
        self._buffers, self._images, self._constant, self._eps = buffers, images, constant, eps
        self._heads = images * buffers.queries.shape[1]
        self._state = buffers.state[:images].flatten(0, 1).zero_()
        self._sums: dict[str, torch.Tensor] = {}
        self._length = 0

    def extend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """q and k ``[images, heads, n, D]``, v ``[images, heads, n, Dv]`` into out."""
        tokens = -(-q.shape[2] // _CHUNK) * _CHUNK
        q, k = (
            _features(x, buffer[: self._images, :, :tokens])
            for x, buffer in ((q, self._buffers.queries), (k, self._buffers.keys))
        )
        chunks = slice(q.shape[0])
        to_queries, to_keys = self._buffers.to_queries[chunks], self._buffers.to_keys[chunks]
        torch.bmm(q, k.transpose(1, 2), out=to_keys)
        torch.tril(to_keys, out=to_queries)
        to_keys.triu_()
        count = torch.arange(self._length + 1, self._length + tokens + 1, dtype=q.dtype, device=q.device)
        competition, sink = self._flows(q, k, to_queries, to_keys, count)
        self._aggregate(q, k, v, to_queries, competition, sink, out)
        self._length += tokens

    def _flows(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        to_queries: torch.Tensor,
        to_keys: torch.Tensor,
        count: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[G, T]``: the sources' competition, and the sinks' allocation over their incoming flow.

        A vector times a chunk is a row on the left: MKL is several times as fast so.
        """
        q_sum, k_sum = (x.sum(-1).view(self._heads, -1) for x in (q, k))
        received = torch.bmm(self._before("keys", k.sum(-2, keepdim=True)), q.transpose(1, 2))
        received = received.view(-1, _CHUNK).add_(to_queries.sum(-1)).view(self._heads, -1)
        incoming = self._rest("k", q_sum, k_sum).add_(received)

        weights = torch.stack([torch.ones_like(incoming), count / incoming], 1)
        chunks = weights.view(self._heads, 2, -1, _CHUNK).transpose(1, 2).flatten(0, 1)
        earlier = self._before("queries", chunks @ q)
        sent = torch.bmm(chunks, to_keys).baddbmm_(earlier, k.transpose(1, 2))
        outgoing, source = sent.view(self._heads, -1, 2, _CHUNK).transpose(1, 2).flatten(2).unbind(1)
        outgoing = self._rest("q", k_sum, q_sum).add_(outgoing)
        source = self._rest("weighted q", k_sum, q_sum * weights[:, 1]).add_(source)

        source = source.div_(count).clamp_(-1, 1).exp_()
        competition = (source / self._running("source", source)).mul_(count)
        weight = count / outgoing
        chunks = weight.view(-1, 1, _CHUNK)
        sink = torch.bmm(chunks, to_queries.transpose(1, 2))
        sink.baddbmm_(self._before("weighted keys", chunks @ k), q.transpose(1, 2))
        sink = self._rest("weighted k", q_sum, k_sum * weight).add_(sink.view(self._heads, -1))
        return competition, sink.div_(count).sigmoid_().div_(incoming)

    def _aggregate(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        to_queries: torch.Tensor,
        competition: torch.Tensor,
        sink: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Chunk after chunk, while its values are in the cache."""
        buffers, scales = self._buffers, (self._images, -1, competition.shape[1] // _CHUNK, _CHUNK, 1)
        q, k, to_queries = (x.view(self._heads, -1, *x.shape[1:]).unbind(1) for x in (q, k.transpose(1, 2), to_queries))
        competition, sink = (x.view(scales).unbind(2) for x in (competition, sink))
        values, results = buffers.values[: self._images], buffers.results[: self._images]
        value, result = values.flatten(0, 1), results.flatten(0, 1)
        chunks = zip(q, k, to_queries, competition, sink, v.split(_CHUNK, 2), out.split(_CHUNK, 2), strict=True)
        for query, key, pairs, incoming, outgoing, source, target in chunks:
            tokens = source.shape[2]
            if tokens < _CHUNK:
                incoming, outgoing = incoming[:, :, :tokens], outgoing[:, :, :tokens]
            torch.mul(source, incoming, out=values[:, :, :tokens])
            torch.bmm(pairs, value, out=result)
            result.baddbmm_(query, self._state)
            self._state.baddbmm_(key, value)
            torch.mul(results[:, :, :tokens], outgoing, out=target)

    def _rest(self, name: str, x_sum: torch.Tensor, y_sum: torch.Tensor) -> torch.Tensor:
        """What (x + eps) . (running sum of y + eps) + outer_eps, ``[G, T]``, is more than x . (running sum of y)."""
        return self._running(name, y_sum).add(x_sum).mul_(self._eps).add_(self._constant)

    def _before(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The sum of ``[G * chunks, ...]`` over all earlier chunks."""
        chunks = x.view(self._heads, -1, *x.shape[1:])
        return self._running(name, chunks).sub(chunks).view_as(x)

    def _running(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The running sum of ``[G, tokens or chunks, ...]`` from the sequence's beginning, to be left as it is."""
        total = x.cumsum(1)
        if name in self._sums:
            total += self._sums[name]
        self._sums[name] = total[:, -1:]
        return total


def _features(x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """sigmoid of ``[images, heads, n, D]`` into the buffer's first tokens → all its chunks ``[chunks, C, D]``."""
    tokens = x.shape[2]
    sigmoid(x, buffer[:, :, :tokens])
    # No token sees what comes after the last one; their own divisions have to stay finite.
    buffer[:, :, tokens:] = 0.5
    return buffer.reshape(-1, _CHUNK, x.shape[-1])
