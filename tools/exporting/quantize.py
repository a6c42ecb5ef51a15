"""Eight-bit weights for an ONNX file, and how often its first choice stays the same on photographs."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cli import UserError
from ..data.extras import import_extra
from .formats import Run, silence

_OPERATORS = ("MatMul", "Gemm")
_BATCH = 4


@dataclass(frozen=True)
class Agreement:
    """Of an 8-bit file with the file it was made from.

    Attributes:
        same: photographs whose first choice is the same.
        total: photographs.
        error: norm of the logits' difference, relative.
    """

    same: int
    total: int
    error: float

    def __str__(self) -> str:
        return f"the same first choice on {self.same} of {self.total} photographs, logits differ by {self.error:.1e}"


def quantize(source: Path, target: Path) -> None:
    """Gives matrix products 8-bit weights; their inputs are converted as they come (dynamic quantization).

    Convolutions stay as they are: onnxruntime's 8-bit ones are slower on a CPU.

    Raises:
        UserError: there is no matrix product with weights.
    """
    onnx = import_extra("onnx", extra="export")
    quantization = import_extra("onnxruntime.quantization", "onnxruntime", extra="export")
    with silence():
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    nodes = onnx.load(str(target)).graph.node
    if not any(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in nodes):
        raise UserError("--quantize int8: this model has no matrix product whose weights could be of 8 bits")


def agreement(quantized: Run, exact: Run, photographs: Tensor) -> Agreement:
    """Runs both files on the photographs [N, 3, H, W]."""
    found, truth = (torch.cat([run(part)[0] for part in photographs.split(_BATCH)]) for run in (quantized, exact))
    same = int((found.argmax(1) == truth.argmax(1)).sum())
    return Agreement(same, len(photographs), float((found - truth).norm() / truth.norm()))
