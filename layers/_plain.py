"""Whether a submodule's weights may be used without calling it."""

from torch import nn


def is_plain(*modules: nn.Module) -> bool:
    """Whether all are PyTorch's own linear layers or convolutions and nobody watches or changes their calls.

    Hooks (pruning's, too), parametrizations, adapters and quantized layers only work where a module is called.
    """
    return all(type(module) in (nn.Linear, nn.Conv2d) and not is_watched(module) for module in modules)


def is_watched(module: nn.Module) -> bool:
    """Whether a module's calls are seen or changed by hooks, or by a forward of its own, as accelerate gives it."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return bool(hooks) or "forward" in module.__dict__
