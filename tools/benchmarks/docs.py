"""Write docs/benchmarks.md from the committed measurements."""

import argparse
from pathlib import Path

from ..cli import UserError
from ..files import write_atomic
from .goals import verdicts
from .report import markdown, read_report

_RESULTS = Path(__file__).parents[2] / "results"
_NATTEN_NAMES = ("natten", "natten-2-threads", "natten-serial")
_OPS_NAMES = ("ops", "ops-2-threads", "ops-compiled", "ops-backward")
# The same commands on a processor of another maker.
_AMD_NAMES = ("ops-amd", "layers-amd", "blocks-amd", "natten-amd")
_NAMES = (*_OPS_NAMES, "layers", "layers-2-threads", *_NATTEN_NAMES, *_AMD_NAMES, "models", "models-backward")
# What a CPU has pictures of instead, or no use for.
_GPU_NAMES = (*_NAMES, "neighborhood-compiled", "blocks", "resolution")

_HEAD = """# Benchmarks

Written by `attnzoo bench docs --output docs/benchmarks.md` from the reports in `results/`; a test compares the two.
Each section is one run of one command on one machine. Forms took turns within one process (A B A B …), so ratios within
a section mean something, and times of different sections are not comparable.

How to read the tables of ops:

- **form**: `torch` is the implementation that runs on a CPU, `reference` the definition, `published` the published
  code's way of computing the op, written anew from its description, on its layer's layout of the tensors; `gather` is
  neighborhood attention by copies of all windows, `SDPA` PyTorch's `scaled_dot_product_attention`. `torch, compiled`
  went through `torch.compile`, whose programs call the eager code of neighborhood, routing, sparse and flow-attention,
  of dynamic convolution, and of some sizes of agent attention, as one operator. Other libraries appear where they were
  installed. `natten` has no relative position bias any more: it computes less than the others; `natten 0.14.6 (C++)`,
  with which the published checkpoints were trained, has it.
- **ms**: median time of a call. On one thread it is the processor time of the process, which other processes' turns
  are not part of; that they compete for caches and memory still shows. On more threads it is the wall clock's.
  Before every sample the same form runs untimed for 50 ms: caches and clock rate are what it makes them, not what
  another form left. The first calls after a slow form, or after a pause, take longer.
  The C library's allocator keeps what is freed, but for blocks of 32 MB and more: those are fresh memory at every
  call, whose page faults are part of the time. By itself it gives large free ends of its heap back to the system, too;
  who pays for that depends on where blocks come to lie, and moved ratios by a factor of two from process to process.
  A program of yours gets the same by `MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=33554432` in its
  environment, and keeps the largest blocks, too, by `MALLOC_MMAP_MAX_=0`; `attnzoo eval`, `train` and `diffuse` do.
- **× ours**: time over that of the form that the op chooses, `torch` on a CPU; above 1 the form is slower.
- **× floor**: time over the longer of moving inputs and outputs once at the speed of a large copy, and computing the
  op's products at the speed of a large matrix product, both measured in the same run.
- **peak MB**: the most that PyTorch's allocator holds during a call beyond its inputs, result included. Scratch memory
  inside oneDNN and MKL is not seen.
- **error**: against the definition in float64, relative to the norm. It was taken before any time: a form whose error
  is too large gets no time. A form that is not ours may round more often in 16 bits, if it is exact in float64.

How to read the tables of models, all of them with random weights:

- **form**: `eager` is the model as it is, `compiled` through `torch.compile`; `reference` has the definitions in place
  of its attention ops and is otherwise the same model.
- **× eager**: time over that of `eager`.
- **× floor**: time over the longer of moving weights, images and logits once at the speed of a large copy, and of the
  multiply-adds that `attnzoo info` counts, in matrix products and convolutions, at the speed of a large matrix product.
  With gradients weights move three times and the others twice, at three times the multiply-adds.
- **error**: of the logits against those by the definitions, relative to their norm: exactly 0 where both add in the
  same order. The models of timm, which stand beside ours for their times, have none.

What the goals below are, and what they are not: they were set by timings of both forms on two threads of an AVX-512
processor. How far a form is ahead depends on the processor: PyTorch's matrix products come from MKL, which takes slower
ways on processors that are not Intel's, and what both sides spend on products no form can save. Some sections were
measured on an AMD processor, on one thread alone: its two CPUs seem to share a core. How far a form is ahead depends on
the run, too, where it makes blocks of 32 MB and more: dynamic convolution's published form took 23 ms in one run and 54
in another at 14×14, on the same machine.

Sections without a processor in their title are Intel's, and older than five changes: large-kernel attention went by
phases then, not by oneDNN's dilated kernels, dilated neighborhood attention copied its groups from memory, that of
14×14 maps went by tiles, grouped-query attention copied its keys and values, and `gather` held its two copies of
windows at once.

In the tables of layers `published` has no library's kernels: neighborhood attention's copies all windows, ContMix's
unfolds them. In those of blocks a layer stands between norms and residuals, an MLP behind it, and ContMix in its own
block; what is aimed at for blocks is aimed at on a GPU.

The goals of routing and of Sparsifiner are for whole layers, and stand with the layers; their projections alone, which
both sides share, can take more than the goal leaves. That of causal flow attention was set for its largest product
alone; the op here is all of it. NATTEN 0.14.6's own CPU kernels were measured in runs of their own, forward only:
compiled to run on as many threads as the other forms, and, as its own build leaves them, on one. Nothing stands here
for a mode that has no section.
"""

_NO_GPU = """## On a GPU

No GPU was to be had. Nothing was measured on one, and nothing is claimed for one: neither for the Triton kernels, which
were only run by Triton's interpreter and compiled, nor for the `torch` forms. `attnzoo bench ops --device cuda` and
`attnzoo bench models --device cuda` time by CUDA events, the kernels of ops by CUDA graphs, too; those paths have
themselves not been run.
"""

_ON_GPU = """In the tables of ops and layers on a GPU **ms** is what the device takes for a form's kernels, captured as
a CUDA graph and replayed with nothing of the call before in its cache, and **as called** the time of calls from Python,
one after the other, which for small ops is Python's. What is not captured, as the definitions, has the same in both.
"""

_NATTEN = """NATTEN 0.14.6 does not build for this PyTorch as it is. `make natten-peer` compiles its kernels by g++ with
`-O3 -mavx2 -mfma -fopenmp`, for windows of 7×7 only and with no change to what their loops compute; with
`PYTHONPATH=build/natten` the command below finds them. Queries, keys and values were copied into its layout, and the
result out of it, outside the timing.
"""

_NATTEN_SERIAL = """The same kernels without `-fopenmp`: they run on one thread, whatever is asked for, while all
other forms run on two. NATTEN's `setup.py` compiles them so (and without AVX2), and the goals seem to have been set by
such a build (`PYTHONPATH=build/natten-serial`); the two sections before compare like with like.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="cpu-*.json and gpu-*.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of printing")


def run(args: argparse.Namespace) -> int:
    text = document(args.results)
    if args.output is None:
        print(text, end="")
    else:
        write_atomic(args.output, text.encode())
    return 0


def document(results: Path = _RESULTS) -> str:
    """The text of docs/benchmarks.md.

    Raises:
        UserError: there are no reports, or one cannot be read.
    """
    parts = [_HEAD, *(_section(path) for path in _reports(results, "cpu"))]
    if len(parts) == 1:
        raise UserError(f"{results} has no cpu-ops.json or cpu-models.json; 'attnzoo bench ops --json FILE' writes one")
    on_gpu = [_section(path) for path in _reports(results, "gpu")]
    return "\n".join([*parts, *([_ON_GPU, *on_gpu] if on_gpu else [_NO_GPU])])


def _reports(results: Path, kind: str) -> list[Path]:
    paths = (results / f"{kind}-{name}.json" for name in (_NAMES if kind == "cpu" else _GPU_NAMES))
    return [path for path in paths if path.exists()]


def _section(path: Path) -> str:
    report = read_report(path)
    setting = report["setting"]
    name = path.stem.partition("-")[2]
    title = {"ops": "Ops", "layers": "Layers", "models": "Models, 224 × 224 pixels"}[report["subject"]]
    if setting.get("block"):
        title = "Blocks"
    if name == "resolution":
        title = "Models by image size"
    if name.startswith("natten"):
        title = "Neighborhood attention beside NATTEN 0.14.6"
    title += ", forward and backward" if setting["backward"] else ", forward"
    on_gpu = setting["timer"] == "CUDA events"
    if on_gpu:
        title += ", on a GPU"
    elif setting["threads"] > 1:
        title += f", {setting['threads']} threads"
    if setting["compile"]:
        title += ", with torch.compile"
    if name in _AMD_NAMES:
        title += ", on an AMD processor"
    if name == "natten-serial":
        title += ", NATTEN on one"
    note = {"natten": _NATTEN + "\n", "natten-serial": _NATTEN_SERIAL + "\n"}.get(name, "")
    text = f"## {title}\n\n{note}`{setting['command']} --json results/{path.name}`\n\n{markdown(report)}"
    return "\n".join([text, verdicts(report)]) if verdicts(report) else text
