"""Follows one forward of a model: which layer is running, and the attention that it computes."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...kernels import observe_ops
from ...layers import ContMix, CrossShapedWindowAttention, DilatedReparamConv, SparsifinerAttention

SOFTMAX = "scaled_dot_product_attention"
CONVOLUTION = "large_convolution"
# Layers with several attentions: what the first and second are called.
_PARTS = {CrossShapedWindowAttention: ("vertical", "horizontal"), ContMix: ("small", "large")}
# Convolutions that stand in attention's place; LargeKernelAttention has an op.
_CONVOLUTIONS = (DilatedReparamConv,)


@dataclass(frozen=True)
class Call:
    """One computation of attention.

    Attributes:
        layer: name of the innermost module that asked for it, and after a colon which of its several.
        module: that module.
        inputs: the module's positional arguments.
        op: public name of the op, :data:`SOFTMAX` or :data:`CONVOLUTION`.
        arguments: the op's arguments, every default filled in.
    """

    layer: str
    module: nn.Module
    inputs: tuple
    op: str
    arguments: tuple


class Tap(ABC):
    """Shows every attention of a forward to :meth:`attend`, in the thread that opened it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._stack: list[tuple[str, nn.Module, tuple]] = []
        self._count: Counter[str] = Counter()
        self._inside = False

    @abstractmethod
    def attend(self, call: Call, run: Callable[[], Tensor]) -> Tensor:
        """Called in place of ``run``; what it returns is what the layer gets."""

    @contextmanager
    def following(self) -> Iterator[None]:
        """A context in which one forward of the model is followed, in evaluation mode."""
        self._stack, self._count, self._inside = [], Counter(), False
        thread = threading.get_ident()
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if _is_elementary(module):
                    continue
                enter, leave = self._hooks(name, thread)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            stack.enter_context(evaluating(self.model))
            stack.enter_context(observe_ops(self._op))
            stack.enter_context(_SoftmaxMode(self))
            yield

    def _hooks(self, name: str, thread: int) -> tuple[Callable, Callable]:
        def enter(module: nn.Module, inputs: tuple) -> None:
            if threading.get_ident() == thread:
                self._stack.append((name, module, inputs))

        def leave(module: nn.Module, inputs: tuple, output: Any) -> Any:
            # Where a hook before ours failed, the module was never entered.
            if threading.get_ident() != thread or not self._stack or self._stack[-1][1] is not module:
                return None
            self._stack.pop()
            if isinstance(module, _CONVOLUTIONS) and isinstance(output, Tensor):
                return self.attend(Call(name, module, inputs, CONVOLUTION, (output,)), lambda: output)
            return None

        return enter, leave

    def _op(self, name: str, arguments: tuple, run: Callable[[], Tensor]) -> Tensor:
        if self._inside:
            return run()
        layer, module, inputs = self._stack[-1] if self._stack else ("", self.model, ())
        number = self._count[layer]
        self._count[layer] += 1
        parts = _PARTS.get(type(module), ())
        part = parts[number] if number < len(parts) else str(number + 1)
        layer = f"{layer}:{part}" if parts or number else layer
        self._inside = True
        try:
            return self.attend(Call(layer, module, inputs, name, arguments), run)
        finally:
            self._inside = False


def _is_elementary(module: nn.Module) -> bool:
    """Whether it is a linear layer, convolution, norm … of PyTorch's own.

    No attention is asked for in there, and a layer whose op takes their weights along would call them, not the op, if
    they were watched.
    """
    return type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())


class _SoftmaxMode(TorchFunctionMode):
    """Takes calls of scaled-dot-product attention that are no part of an op for ops themselves."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.tap._op(SOFTMAX, _softmax_arguments(*args, **kwargs), lambda: func(*args, **kwargs))


def _softmax_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple:
    return query, key, value, attn_mask, is_causal, query.shape[-1] ** -0.5 if scale is None else scale


class HeadRemover(Tap):
    """Sets the output of one head of one attention to zero, before the layer's output projection.

    Args:
        model: the model.
        layer: the attention's name, as :func:`attention_maps` gives it.
        head: the head's number.
        heads: how many heads there are.
    """

    def __init__(self, model: nn.Module, layer: str, head: int, heads: int) -> None:
        super().__init__(model)
        self.layer, self.head, self.heads = layer, head, heads

    @contextmanager
    def following(self) -> Iterator[None]:
        module, thread = self.model.get_submodule(self.layer.partition(":")[0]), threading.get_ident()

        def remove(module: nn.Module, inputs: tuple) -> tuple:
            if threading.get_ident() != thread:
                return inputs
            joined = inputs[0].unflatten(-1, (self.heads, -1)).clone()
            joined[..., self.head, :] = 0
            return (joined.flatten(-2),)

        with ExitStack() as stack:
            # Its class token attends beside the op.
            if isinstance(module, SparsifinerAttention):
                stack.callback(module.proj.register_forward_pre_hook(remove).remove)
            stack.enter_context(super().following())
            yield

    def attend(self, call: Call, run: Callable[[], Tensor]) -> Tensor:
        output = run()
        if call.layer != self.layer or call.op == CONVOLUTION:
            return output
        output = output.clone()
        if call.op == SOFTMAX:
            # Heads stand before tokens, those of a window after those of the window before.
            output[:, self.head :: self.heads] = 0
        else:
            output[..., self.head, :] = 0
        return output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in evaluation mode; modes and buffers are afterwards what they were."""
    training = [module for module in model.modules() if module.training]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        with torch.no_grad():
            for buffer, before in buffers:
                # Some layers count their evaluations (DynamicGQA).
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
