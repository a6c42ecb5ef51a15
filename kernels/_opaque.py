"""Implementations that ``torch.compile`` calls as they are.

On a CPU without a gradient eager code may cut a batch to what the caches hold, write into buffers of its own and ask
values before it goes on. A traced program can do none of it, and what Inductor fuses in return is worth less.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ._checks import is_transformed, needs_gradient

_SCHEMA = {
    "torch.Tensor": "Tensor",
    "torch.Tensor | None": "Tensor?",
    "tuple[int, ...]": "SymInt[]",
    "tuple[int, int]": "SymInt[]",
    "int": "SymInt",
    "float": "float",
    "bool": "bool",
}
# By name, for tests.
operators: dict[str, torch.library.CustomOpDef] = {}


def like_values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
    """The form of an attention's result: q's shape but for the last axis, which is v's."""
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def like_first(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """The form of a result with the first argument's shape."""
    return x.new_empty(x.shape)


def opaque(
    name: str,
    form: Callable[..., torch.Tensor] = like_values,
    when: Callable[..., bool] | None = None,
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Makes of a function an operator of its own in programs that ``torch.compile`` makes for a CPU without a gradient.

    Elsewhere it is what it was: with gradients, on other devices, under autocast, whose casts would be missed, and in
    exported programs, which run without this package.

    Args:
        name: the operator's, in the namespace ``attnzoo``.
        form: an empty contiguous tensor of the result's shape and dtype, from the same arguments.
        when: whether to do so for some arguments; None is always.

    Raises:
        KeyError: a parameter's annotation has no counterpart in the operator's schema.
    """

    def decorate(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        parameters = inspect.signature(run).parameters.values()
        schema = ", ".join(f"{_SCHEMA[each.annotation]} {each.name}" for each in parameters)

        def eager(*args: Any) -> torch.Tensor:
            with torch.no_grad():
                return run(*(tuple(x) if isinstance(x, list) else x for x in args)).contiguous()

        operator = torch.library.custom_op(
            f"attnzoo::{name}", eager, mutates_args=(), device_types="cpu", schema=f"({schema}) -> Tensor"
        )
        operator.register_fake(form)
        operators[name] = operator

        @wraps(run)
        def choose(*args: Any) -> torch.Tensor:
            if compiles_for_inference(*args) and (when is None or when(*args)):
                return operator(*args)
            return run(*args)

        return choose

    return decorate


@torch.compiler.assume_constant_result
def exports() -> bool:
    """Whether the program that is being made is one of ``torch.export``."""
    # Asked while programs are made: in those that Dynamo of PyTorch 2.10 and 2.11 makes it is always true.
    return torch.compiler.is_exporting()


def compiles_for_inference(x: torch.Tensor, *rest: Any) -> bool:
    """Whether ``torch.compile`` makes a program for a CPU without a gradient of what is computed from the arguments."""
    # What is computed beside by a transform needs the operators that PyTorch knows, without any gradient, too.
    if not torch.compiler.is_dynamo_compiling() or exports() or is_transformed():
        return False
    # Other libraries' kinds of tensors know PyTorch's operators, not ours.
    plain = type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu") and not needs_gradient((x, *rest))
