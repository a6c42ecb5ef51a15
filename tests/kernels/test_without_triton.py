"""The package without Triton: it imports, computes, and says why the fused kernels do not run."""

import subprocess
import sys

SCRIPT = """
import importlib.util, sys

sys.modules["triton"] = None
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)

import torch
from attnzoo.kernels import explain, neighborhood_attention
from attnzoo.kernels.fused._launch import why_not_fused
from torch._subclasses import FakeTensorMode

x = torch.randn(1, 4, 5, 1, 8)
assert neighborhood_attention(x, x, x, 3).isfinite().all()
assert explain(neighborhood_attention, x, x, x, 3).chosen == "torch"
with FakeTensorMode():
    assert why_not_fused(torch.empty(2, device="cuda")) == "Triton is not installed"
fused = {name for name in sys.modules if name.startswith("attnzoo.kernels.fused.")}
assert fused == {"attnzoo.kernels.fused._launch"}, fused
assert not torch.cuda.is_initialized()
"""


def test_without_triton():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
