"""Run timm's own model tests over the zoo's names.

timm's tests travel in its source distribution, not in its wheel; this fetches the one of the installed version from the
package index, makes its parametrisation see only attnzoo's models, and runs the tests that are about any model.

    python tests/timm_suite/run.py [PATTERN] [pytest options ...]
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import timm

HERE = Path(__file__).parent
TESTS = (
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_default_cfgs_non_std",
    "test_model_forward_features",
    "test_model_forward_intermediates_features",
    "test_model_forward_intermediates",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
)


def fetch(folder: Path) -> Path:
    """timm's ``tests/test_models.py`` of the installed version below ``folder``."""
    root = folder / f"timm-{timm.__version__}"
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, f"timm=={timm.__version__}", "--dest", str(folder)], check=True)
        with tarfile.open(next(folder.glob(f"timm-{timm.__version__}.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return root / "tests" / "test_models.py"


def main(arguments: list[str]) -> int:
    pattern = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "*"
    suite = fetch(Path("build") / "timm-suite")
    nodes = [f"{suite}::{name}" for name in TESTS]
    options = ["-p", "timm_suite_plugin", "--rootdir", str(suite.parent), "-o", "addopts=", "-q", *arguments]
    environment = {"PYTHONPATH": str(HERE), "ATTNZOO_SUITE_PATTERN": pattern, "TIMEOUT": "1800"}
    return subprocess.call([sys.executable, "-m", "pytest", *options, *nodes], env={**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
