"""The keys of a training recipe, with their types, ranges and defaults. Names are timm's."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


def key(default: Any, doc: str, low: float | None = None, high: float | None = None) -> Any:
    """A recipe key: its default, a line of help and the closed range of its numbers."""
    metadata = {"doc": doc, "low": low, "high": high}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(doc: str) -> Any:
    """A recipe key without a default."""
    return dataclasses.field(metadata={"doc": doc, "low": None, "high": None})


@dataclass(frozen=True)
class Model:
    name: str = required("timm name of the model")
    pretrained: bool = key(False, "start from the name's published weights")
    num_classes: int = key(1000, "classes", 1)
    drop_rate: float = key(0.0, "dropout before the classifier", 0, 1)
    drop_path_rate: float | None = key(None, "stochastic depth; null: the model's own default", 0, 1)
    kwargs: dict[str, Any] = key({}, "further arguments of timm.create_model")


@dataclass(frozen=True)
class Data:
    source: str = required("digits, a folder of images, or a timm data set name such as hfds/...")
    root: str | None = key(None, "folder of timm data sets that keep one, as torch/...")
    train_split: str = key("train", "split to train on")
    val_split: str = key("validation", "split to validate on")
    limit: int | None = key(None, "use only so many images of each split, evenly spaced", 1)
    img_size: int | tuple[int, int] = key(224, "side, or [height, width], of the input", 1, 8192)
    mean: tuple[float, ...] | None = key(None, "normalisation mean, of 0 to 1; null: the model's", 0, 1)
    std: tuple[float, ...] | None = key(None, "normalisation deviation, above 0 to 1; null: the model's", 1e-3, 1)
    crop_pct: float | None = key(None, "centre crop of the validation; null: the model's", 0.01, 1)
    interpolation: Literal["bilinear", "bicubic", "nearest", "random"] = key("bicubic", "how images are resized")
    scale: tuple[float, float] = key((0.08, 1.0), "area of random resized crops", 0.001, 1)
    ratio: tuple[float, float] = key((3 / 4, 4 / 3), "aspect ratio of random resized crops", 0.01, 100)
    hflip: float = key(0.5, "probability of a horizontal flip", 0, 1)
    vflip: float = key(0.0, "probability of a vertical flip", 0, 1)
    degrees: float = key(0.0, "random rotation up to so many degrees", 0, 180)
    translate: float = key(0.0, "random shift up to this share of the side", 0, 1)
    color_jitter: float = key(0.4, "colour jitter; unused with aa, as in timm", 0, 100)
    aa: str | None = key(None, "AutoAugment policy, as rand-m9-mstd0.5-inc1")
    re_prob: float = key(0.0, "probability of random erasing", 0, 1)
    re_mode: Literal["const", "rand", "pixel"] = key("pixel", "what erased areas are filled with")
    re_count: int = key(1, "areas erased", 1)
    mixup: float = key(0.0, "alpha of Mixup, 0: none", 0)
    cutmix: float = key(0.0, "alpha of CutMix, 0: none", 0)
    mixup_prob: float = key(1.0, "probability of mixing a batch", 0, 1)
    mixup_switch_prob: float = key(0.5, "probability of CutMix where both are on", 0, 1)
    mixup_mode: Literal["batch", "pair", "elem"] = key("batch", "one mix per batch, pair or element")
    aug_repeats: int = key(1, "copies of each drawn image in an epoch (repeated augmentation)", 1)
    workers: int = key(4, "loader processes per training process", 0, 256)


@dataclass(frozen=True)
class Optimizer:
    opt: str = key("adamw", "timm optimizer")
    lr: float = key(1e-3, "learning rate", 0)
    lr_base_size: int | None = key(None, "batch that lr is meant for: lr is scaled linearly; null: lr as it is", 1)
    weight_decay: float = key(0.05, "weight decay", 0)
    momentum: float = key(0.9, "momentum of the optimizers that have one", 0, 1)
    betas: tuple[float, float] | None = key(None, "Adam's betas; null: the optimizer's", 0, 1)
    eps: float | None = key(None, "Adam's epsilon; null: the optimizer's", 0)
    layer_decay: float | None = key(None, "learning rate factor from each layer to the one below", 0, 1)
    clip_grad: float | None = key(None, "largest norm of the gradient", 0)


@dataclass(frozen=True)
class Scheduler:
    sched: Literal["cosine", "tanh", "step", "multistep", "poly"] = key("cosine", "timm schedule, stepped per update")
    warmup_epochs: float = key(0.0, "epochs of linear warm-up, part of epochs", 0)
    warmup_lr: float = key(1e-6, "learning rate at the start of the warm-up", 0)
    min_lr: float = key(0.0, "learning rate at the end", 0)
    cooldown_epochs: int = key(0, "epochs at min_lr after epochs", 0)
    decay_epochs: float = key(30.0, "epochs between decays (step)", 1e-3)
    decay_milestones: tuple[int, ...] = key((90, 180, 270), "epochs of decay (multistep)", 0)
    decay_rate: float = key(0.1, "factor of a decay, or the power (poly)", 0)


@dataclass(frozen=True)
class Ema:
    decay: float | None = key(None, "decay of the moving average of the weights; null: none is kept", 0, 1)
    warmup: bool = key(True, "let the decay grow with the updates")


@dataclass(frozen=True)
class Checkpoint:
    every_epochs: int = key(1, "epochs between checkpoints", 1)
    every_updates: int | None = key(None, "updates between checkpoints within an epoch; null: none", 1)
    keep: int = key(2, "newest checkpoints kept", 1)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. One update of the weights sees ``batch_size * grad_accum`` images in each process."""

    model: Model
    data: Data
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    scheduler: Scheduler = dataclasses.field(default_factory=Scheduler)
    ema: Ema = dataclasses.field(default_factory=Ema)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    epochs: int = key(300, "epochs, warm-up included", 1)
    batch_size: int = key(128, "images of one forward in each process", 1)
    grad_accum: int = key(1, "forwards of one update", 1)
    label_smoothing: float = key(0.1, "label smoothing", 0, 1)
    amp_dtype: Literal["none", "bfloat16", "float16"] = key("none", "autocast type")
    export_dtype: Literal["float32", "float16", "bfloat16"] = key("float32", "type of the weights in model.safetensors")
    seed: int = key(0, "seed of weights, order and augmentation", 0, 2**32 - 1)
    deterministic: bool = key(False, "ask PyTorch for deterministic GPU kernels")
    tensorboard: bool = key(True, "write TensorBoard events where tensorboard is installed")
