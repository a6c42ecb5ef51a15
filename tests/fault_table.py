"""What attnzoo must survive, and what it does then; ``python tests/fault_table.py`` writes docs/faults.md.

The outcomes are those of ``pytest tests/faults --faults-results results/faults.json`` (``make faults``).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "faults.json"
PAGE = ROOT / "docs" / "faults.md"


@dataclass(frozen=True)
class Fault:
    """One row: its number, the fault, and what a user sees."""

    number: int
    fault: str
    answer: str


FAULTS = tuple(
    Fault(number, *row)
    for number, row in enumerate(
        [
            (
                "truncated `.pth`; cut, corrupted, hanging or redirected download",
                "one line: the file, its size, the published size and hash where known; status 2. Downloads are "
                "resumed, checked, tried again, then sought at the next mirror; a wrong file is set aside as `.bad`",
            ),
            ("truncated `.safetensors`", "the same"),
            ("empty file", '"is an empty file"; status 2'),
            ("HTML login page saved or served as a checkpoint", '"is an HTML page … the link needs a login"; status 2'),
            ("missing checkpoint", "the name, the folder that was searched, the nearest names there; status 2"),
            (
                "checkpoint of another architecture",
                "five missing and five unexpected names, how many in all, the model that fits; status 2 at once",
            ),
            ("one tensor missing", "named, status 2; `--allow-missing NAME` says that it may be missing"),
            ("pickle that runs code", "refused, not run; there is no switch that would load it"),
            ("a list or a whole module in the file", '"expected a state dict, got list"; modules are refused'),
            ("DataParallel, compile and EMA wrappers", "unwrapped; the output says which weights were taken"),
            ("half-precision file for a float32 model", "loaded, and said once"),
            (
                "NaN in weights or logits",
                "weights: refused by tensor name, status 2; logits: counted, never a hit, listed, status 3",
            ),
            (
                "truncated, empty or mislabelled image",
                "listed with the reason, out of the denominator; status 3 unless `--allow-unreadable N`",
            ),
            ("decompression bomb (20,000 × 20,000 pixels)", "as any unreadable image"),
            ("empty class folder", "keeps its index; a warning names it"),
            ("one class name in two branches", "refused with both paths; status 2"),
            ("fewer folders than classes", "refused until a class map says which is which; status 2"),
            ("more folders than classes", "refused before the first batch; status 2"),
            ("class map that leaves folders out", "refused with their names; `--subset` leaves them out, counted"),
            ("GIF, WebP, BMP, TIFF and other files", "images are evaluated; other files are counted and named"),
            ("CMYK JPEG", "converted by Pillow; the result counts it"),
            ("16-bit PNG", "scaled to 8 bits, not clipped; the result counts it"),
            ("alpha, palette, grey and 1 × 1 images", "converted; the result counts them"),
            ("animated image", "its first frame; the result counts it"),
            ("EXIF orientation", "ignored, as in published evaluations; `--exif` applies it"),
            ("image sides that no stride divides", "every family pads or floors as published and gives finite logits"),
            ("8 × 8 image", "evaluated, or a `ValueError` that names the least size"),
            ("batch of none", "`[0, num_classes]`"),
            (
                "batch size 0, unknown model, missing data folder",
                "refused before anything is loaded, with the nearest name; status 2",
            ),
            ("odd dtype", "float64 runs in the definition; integers are refused by name"),
            (
                "out of memory",
                "the batch is halved, finished batches are kept; other errors are never taken for it",
            ),
            ("results path in a missing folder", "the folder is made before the run, or status 2 before it"),
            ("disk full at the results", "the figures are printed first; one line, no litter; status 2"),
            (
                "disk full at a checkpoint or a download",
                "one sentence with what is needed and what is free; earlier files stay whole, no litter; status 2",
            ),
            ("SIGKILL in an evaluation", "`--resume` goes on: 20 random kills give the uninterrupted result's bits"),
            (
                "SIGKILL in a training",
                "`--resume` takes the newest readable checkpoint: the loss curve has the same digits",
            ),
            ("power loss", "every file is flushed before its rename, its folder after it"),
            ("eight processes download the same file", "one request, one file, eight answers"),
            ("read-only cache", "read as it is; a missing file names the folder and TORCH_HOME; status 2"),
            ("no network", "one line with the place where the file may be put by hand; status 2"),
            ("symbolic links in a loop", "no folder is entered twice; the links are listed"),
            ("data workers die (SIGKILL, bus error)", "goes on without workers, and says so"),
            ("a later timm has a model of the same name", "timm's is kept, ours is `attnzoo_NAME`; a warning says so"),
            (
                "timm, torch or Triton of a version that does not fit",
                "one line at import with the command that mends it; an old Triton only turns fused kernels off",
            ),
        ],
        1,
    )
)

_HEAD = """# Faults

What goes wrong around models, data and disks, and what attnzoo then does. Each row is provoked for real by
`tests/faults`: a file is cut, a disk is full, a process is killed. Written by `make faults`; a test compares this page
with the table in `tests/fault_table.py`.

Exit statuses: 0 done, 2 bad input that the user can mend, 3 finished but with samples left out or outputs that are not
finite, 130 interrupted. A status of 1 with a traceback is a bug of attnzoo's.

| # | fault | what attnzoo does | tests | passed |
|---|---|---|---|---|
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """The text of docs/faults.md; ``results`` is by number, a fault that was not run has a dash."""
    return _HEAD + "".join(_row(fault, results.get(str(fault.number))) for fault in FAULTS)


def _row(fault: Fault, result: dict[str, Any] | None) -> str:
    tests, passed = ("–", "–")
    if result is not None:
        how = f" ({result['how']})" if result["how"] else ""
        tests, passed = str(result["tests"]), ("yes" if result["passed"] else "**no**") + how
    return f"| {fault.number} | {fault.fault} | {fault.answer} | {tests} | {passed} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
