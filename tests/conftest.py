"""Set-up for every test: one thread, and one copy of the package."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import attnzoo

# The repository's root is a package, which pytest would import a second time under the folder's name.
sys.modules.setdefault(Path(attnzoo.__file__).parent.name, attnzoo)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
