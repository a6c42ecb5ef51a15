"""Whether a form of an op computes the op: its result against the definition in float64."""

from collections.abc import Callable

import torch

from ...kernels import use_backend
from .cases import Case, Inputs, converted, floating
from .published import Form

# Largest error of a result, relative to its norm, with which a time is worth printing: a few roundings of the inputs.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}

Compute = Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]


class Truth:
    """What an op's arguments give by its definition in float64, an image at a time; gradients for the first image.

    Args:
        case: the op and which of its arguments images share.
        inputs: its arguments.
        backward: gradients are checked too.
    """

    def __init__(self, case: Case, inputs: Inputs, backward: bool) -> None:
        self.case = case
        self.backward = backward
        self.output_bytes = 0
        self._batch = next(len(value) for name, value in floating(inputs).items() if name not in case.shared)
        self._known: dict[frozenset[str], tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def error(self, build: Callable[[Inputs], Form], inputs: Inputs, compute: Compute) -> float:
        """The largest error among result and gradients, each relative to the norm of the true one.

        Args:
            build: the form for given arguments.
            inputs: the arguments, perhaps fewer than the op was given.
            compute: makes of the form's function the one that is timed.
        """
        out, gradients = self._of(inputs)
        form = build(inputs)
        with torch.no_grad():
            result = form.view(compute(form.run)(*form.tensors))
        self.output_bytes = result.nbytes
        errors = [relative_error(result, out)]
        if self.backward:
            found = self._gradients(build, self._first(inputs), compute)
            errors += [relative_error(*pair) for pair in zip(found, gradients, strict=True)]
        # max() would pass over a NaN.
        return float(torch.tensor(errors).max())

    def exact_error(self, build: Callable[[Inputs], Form], inputs: Inputs) -> float:
        """The same for a form that computes in float64, on the first image: what is not its dtype's is a mistake."""
        out, gradients = self._of(inputs)
        first = converted(self._first(inputs), torch.float64)
        form = build(first)
        with torch.no_grad():
            errors = [relative_error(form.view(form.run(*form.tensors)), out[:1])]
        found = self._gradients(build, first, lambda function: function)
        errors += [relative_error(*pair) for pair in zip(found, gradients, strict=True)]
        return float(torch.tensor(errors).max())

    def _of(self, inputs: Inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
        key = frozenset(inputs)
        if key not in self._known:
            exact = converted(inputs, torch.float64)
            images = [self.case.part(exact, slice(image, image + 1)) for image in range(self._batch)]
            with torch.no_grad():
                out = torch.cat([self._define(image) for image in images])
            gradients = self._gradients(lambda given: _whole(self._define, given), images[0], lambda function: function)
            self._known[key] = out, gradients if self.backward else []
        return self._known[key]

    def _define(self, inputs: Inputs) -> torch.Tensor:
        with use_backend("reference"):
            return self.case.function(**inputs)

    def _first(self, inputs: Inputs) -> Inputs:
        return self.case.part(inputs, slice(0, 1))

    def _gradients(self, build: Callable[[Inputs], Form], inputs: Inputs, compute: Compute) -> list[torch.Tensor]:
        """Of the result's product with a fixed random tensor, by every floating-point argument."""
        if not self.backward:
            return []
        leaves = {name: value.detach().clone().requires_grad_() for name, value in floating(inputs).items()}
        form = build({**inputs, **leaves})
        out = form.view(compute(form.run)(*form.tensors))
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return list(torch.autograd.grad(out, tuple(leaves.values()), weight, materialize_grads=True))


def _whole(function: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> Form:
    names = tuple(floating(inputs))
    return Form(
        lambda *tensors: function({**inputs, **dict(zip(names, tensors, strict=True))}),
        tuple(inputs[name] for name in names),
    )


def relative_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((result.double() - truth).norm() / truth.norm().clamp(min=1e-300))
