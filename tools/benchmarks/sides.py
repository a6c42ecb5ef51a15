"""The sides of ``attnzoo bench models``: models built for an image size, checked against the ops' definitions."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .grid import Setup

if TYPE_CHECKING:
    import torch

# A model as it is, through torch.compile, and with its ops by their definitions.
FORMS = ("eager", "compiled", "reference")

# Largest difference of the logits from those by the ops' definitions, relative to their norm, with which a time
# is worth printing. It covers a top-k member or a routed region that another rounding chooses.
TOLERANCES = {"float32": 1e-3, "float64": 1e-6, "bfloat16": 0.2, "float16": 0.05}

# The definitions keep whole attention matrices: beyond this size they are compared on a smaller image.
_LARGEST_CHECKED = (256, 256)
_SMALLER = (224, 224)


@dataclass
class Side:
    """A model in one form, ready to be timed.

    Attributes:
        form: one of :data:`FORMS`.
        call: one forward pass, or forward and backward.
        error: of the logits against the ops' definitions; None for a model that is not the zoo's.
        checked_at: the image size of that comparison.
    """

    form: str
    call: Callable[[], Any]
    error: float | None
    checked_at: tuple[int, int] | None


class WrongResult(ValueError):
    """The logits are not those by the definitions."""


def build(name: str, img_size: tuple[int, int]) -> "torch.nn.Module":
    """A model with random weights for images of this size; timm's need to be told it."""
    import timm
    import torch

    from ...zoo import list_models

    torch.manual_seed(0)
    default = timm.get_pretrained_cfg(name).input_size[1:]
    if img_size == tuple(default) or name in list_models():
        return timm.create_model(name).eval()
    try:
        return timm.create_model(name, img_size=img_size).eval()
    except TypeError:  # a convolutional model takes any size and no such argument
        return timm.create_model(name).eval()


def random_images(setup: Setup, img_size: tuple[int, int]) -> "torch.Tensor":
    """The same for every model: [B, 3, H, W] of the setup's type, on its device."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(setup.batch, 3, *img_size, generator=generator)
    return images.to(setup.device, getattr(torch, setup.dtype))


def forms_of(model: "torch.nn.Module", setup: Setup, compiled: bool, reference: bool) -> list[str]:
    """The forms in which a model can be timed; the definitions of small images only, and where there are any."""
    defined = is_ours(model) and setup.backend != "reference" and _is_small(setup.img_size)
    return ["eager", *["compiled"] * compiled, *["reference"] * (reference and defined)]


def make_side(model: "torch.nn.Module", form: str, setup: Setup, backward: bool) -> Side:
    """Checks a model's form and returns the call that is to be timed.

    Raises:
        WrongResult: its logits are off.
        ValueError, RuntimeError, AssertionError: the model does not take the setup.
    """
    import torch

    function = torch.compile(model, dynamic=False) if form == "compiled" else model
    if form == "reference":
        function = forced(form)(lambda images: model(images))
    checked_at = setup.img_size if _is_small(setup.img_size) else _SMALLER
    error = _error(model, function, random_images(setup, checked_at))
    if error is not None and not error <= TOLERANCES[setup.dtype]:
        raise WrongResult(f"{form} is off by {error:.1e}; no time for it")
    parameters = [x for x in model.parameters() if x.requires_grad]
    call = _call(function, random_images(setup, setup.img_size), parameters if backward else [])
    return Side(form, call, error, checked_at if error is not None else None)


def costs(name: str, model: "torch.nn.Module", setup: Setup, backward: bool) -> dict[str, float]:
    """What a batch takes at least: bytes of weights, images and logits moved once, and operations of products.

    Backward reads the weights and images again, writes the weights' gradients and reads the logits': at twice the
    forward's operations.
    """
    import torch

    from ..counting import fewest_multiply_adds

    images = torch.empty(setup.batch, 3, *setup.img_size, device="meta")
    with torch.device("meta"):
        twin = build(name, setup.img_size).requires_grad_(False)
        logits = twin(images)
    flops = 2 * fewest_multiply_adds(twin, images)[0]
    element = getattr(torch, setup.dtype).itemsize
    weights, maps = (element * sum(x.numel() for x in each) for each in (model.parameters(), (images, logits)))
    if backward:
        return {"bytes": 3 * weights + 2 * maps, "flops": 3 * flops}
    return {"bytes": weights + maps, "flops": flops}


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """The backend of the zoo's ops while models run; ``auto`` leaves it to each op."""
    from ...kernels import use_backend

    with use_backend(None if backend == "auto" else backend):
        yield


@contextlib.contextmanager
def room_to_compile(models: int) -> Iterator[None]:
    """Lets this many models be compiled and kept side by side.

    Families share code, and of one piece of code dynamo keeps eight programs, after which it silently leaves it eager.
    """
    import torch

    torch.compiler.reset()
    limit = torch._dynamo.config.recompile_limit + 4 * models
    with torch._dynamo.config.patch(recompile_limit=limit):
        yield


def _error(model: "torch.nn.Module", function: Any, images: "torch.Tensor") -> float | None:
    import torch

    from .check import relative_error

    if not is_ours(model):
        return None
    with torch.no_grad():
        with forced("reference"):
            truth = model(images)
        return relative_error(function(images), truth.double())


def is_ours(model: "torch.nn.Module") -> bool:
    """Whether the zoo has it."""
    from ... import zoo

    return type(model).__module__.startswith(zoo.__name__)


def _is_small(img_size: tuple[int, int]) -> bool:
    return img_size[0] * img_size[1] <= _LARGEST_CHECKED[0] * _LARGEST_CHECKED[1]


def _call(function: Any, images: "torch.Tensor", parameters: "list[torch.Tensor]") -> Callable[[], Any]:
    """A forward pass, and where parameters are given their gradients."""
    import torch

    if not parameters:
        return torch.no_grad()(lambda: function(images))
    return lambda: torch.autograd.grad(function(images).sum(), parameters, allow_unused=True)
