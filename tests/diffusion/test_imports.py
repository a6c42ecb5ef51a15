"""Other packages' imports, with a folder named kernels/ about; and ours without diffusers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnzoo

ROOT = Path(attnzoo.__file__).parent


def run(code, folder):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("where", ["root", "elsewhere"])
@pytest.mark.parametrize("before", ["", "import attnzoo.diffusion; "], ids=["alone", "after_ours"])
def test_stable_diffusion_imports(where, before, tmp_path):
    """As a user's first line, from the repository's root and from anywhere else."""
    code = (
        before + "from diffusers import StableDiffusionPipeline; import attnzoo; print(attnzoo.kernels.agent_attention)"
    )
    done = run(code, ROOT if where == "root" else tmp_path)
    assert done.returncode == 0, done.stderr
    assert "agent_attention" in done.stdout


FIND = """
import importlib.util, sys
import attnzoo
for name in ("kernels", "diffusion", "layers", "zoo", "tools", "weights"):
    spec = importlib.util.find_spec(name)
    print(name, spec and (spec.origin or list(spec.submodule_search_locations)))
print([name for name in sys.modules if name.startswith(("diffusers", "transformers"))])
"""


def test_only_attnzoo_is_found_elsewhere_and_brings_no_diffusers(tmp_path):
    done = run(FIND, tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_diffusers_the_error_names_the_extra(tmp_path):
    done = run("import sys; sys.modules['diffusers'] = None\nimport attnzoo\nimport attnzoo.diffusion", tmp_path)
    assert done.stderr.strip().splitlines()[-1].endswith("needs diffusers: pip install 'attnzoo[diffusion]'")
