"""Which tensors a checkpoint may hold: dense ones of plain types, as large as their memory, without NaN or infinity."""

import re
from collections.abc import Mapping

import torch

from .errors import CheckpointError

# Not complex, quantized or packed types (complex64, qint8, bits8, uint1, float4_e2m1fn_x2).
_PLAIN = re.compile(r"torch\.(bfloat16|float(8_\w+|16|32|64)|u?int(8|16|32|64)|bool)")
# Values of a tensor that repeats its memory; more than any buffer, few enough to be computed with.
_REPEATED = 1 << 24


def check_finite(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity in any floating-point tensor, and tensors that no model here can take.

    Raises:
        CheckpointError: naming the first such tensor, how many values and how many other tensors.
    """
    bad = []
    for name, tensor in state_dict.items():
        if problem := _foreign(tensor):
            raise CheckpointError(f"holds {problem} ({name}), which no model here uses")
        if tensor.is_floating_point():
            values = tensor.float() if tensor.element_size() == 1 else tensor  # isfinite does not know float8
            if count := int((~torch.isfinite(values)).sum()):
                bad.append((name, count, tensor.numel()))
    if bad:
        name, count, total = bad[0]
        others = f" and in {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise CheckpointError(f"has NaN or infinity in {name} ({count:,} of {total:,} values){others}; not loaded")


def _foreign(tensor: torch.Tensor) -> str:
    """What makes a tensor unusable, or an empty string."""
    if tensor.layout is not torch.strided:
        return "a sparse tensor"
    if not _PLAIN.fullmatch(str(tensor.dtype)):
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_meta:
        return "a tensor without values"
    # A small file may so ask for any amount of memory.
    if tensor.numel() > max(_REPEATED, tensor.untyped_storage().nbytes() // tensor.element_size()):
        return f"a tensor of {tensor.numel():,} values that repeats a few"
    return ""
