"""Layer-wise learning-rate decay for detectors and segmenters on the zoo's backbones."""

from fnmatch import fnmatchcase
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from timm.models import group_parameters
from torch import nn

from ..dense import Backbone


class LayerDecay(DefaultOptimWrapperConstructor):
    """Learning rates that fall by ``layer_decay`` from block to block towards the input, as BEiT has them.

    A backbone's parameter of layer ``i`` of ``n`` (timm's ``group_matcher`` says which; the stem is 0) learns at
    ``lr * layer_decay ** (n - i)``; output norms, necks and heads at ``lr``. Vectors and scalars, and what the model's
    ``no_weight_decay`` names, are not decayed, unless a ``custom_keys`` entry with a ``decay_mult`` names them.
    The other settings of ``paramwise_cfg`` work as in MMEngine's default; learning rates multiply.

    In a config: ``optim_wrapper=dict(constructor="attnzoo.LayerDecay", paramwise_cfg=dict(layer_decay=0.9), ...)``.
    Source: Bao et al. 2022, https://arxiv.org/abs/2106.08254, section 3.2.

    Raises:
        ValueError: ``layer_decay`` is missing or not in (0, 1], or the optimizer has no ``lr``.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get("layer_decay")
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f"paramwise_cfg.layer_decay={rate}: a number above 0 and up to 1 works, such as 0.9")
        if self.base_lr is None:
            raise ValueError("optimizer.lr is missing: layer decay multiplies it")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        """Add the parameter groups of ``module``; those of one learning rate and decay are one group."""
        if prefix:  # MMEngine's recursion
            return super().add_params(params, module, prefix=prefix, **kwargs)
        single: list[dict] = []
        super().add_params(single, module, **kwargs)
        scales, undecayed = self._scales(module), self._undecayed(module)
        merged: dict[tuple, dict] = {}
        for group in single:
            parameter = id(group["params"][0])
            group["lr"] = group.get("lr", self.base_lr) * scales.get(parameter, 1.0)
            if parameter in undecayed:
                group["weight_decay"] = 0.0
            settings = {key: value for key, value in group.items() if key != "params"}
            same = merged.setdefault(tuple(sorted(settings.items())), {"params": [], **settings})
            same["params"] += group["params"]
        params.extend(merged.values())

    def _scales(self, model: nn.Module) -> dict[int, float]:
        """The factor of every backbone parameter, by its id()."""
        found = {}
        for body in _bodies(model):
            layers = group_parameters(body, body.group_matcher(coarse=False), reverse=True)
            count = max(layers.values()) + 1
            for name, parameter in body.named_parameters():
                found[id(parameter)] = self.paramwise_cfg["layer_decay"] ** (count - layers[name])
        return found

    def _undecayed(self, model: nn.Module) -> set[int]:
        """The id() of every parameter without weight decay."""
        found = {id(parameter) for parameter in model.parameters() if parameter.ndim <= 1}
        for body in _bodies(model):
            patterns = body.no_weight_decay() if hasattr(body, "no_weight_decay") else ()
            for name, parameter in body.named_parameters():
                if any(fnmatchcase(name, pattern) for pattern in patterns):
                    found.add(id(parameter))
        custom = self.paramwise_cfg.get("custom_keys", {})
        keys = sorted(sorted(custom), key=len, reverse=True)  # MMEngine's order: the longest key decides
        for name, parameter in model.named_parameters():
            key = next((key for key in keys if key in name), None)
            if key is not None and "decay_mult" in custom[key]:
                found.discard(id(parameter))
        return found


def _bodies(model: nn.Module) -> list[nn.Module]:
    return [module.body for module in model.modules() if isinstance(module, Backbone)]
