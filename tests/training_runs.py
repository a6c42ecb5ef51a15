"""Runs of ``attnzoo train`` that take about a second: a tiny model of timm's on a few digits."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from attnzoo.tools import main

TINY = {
    "model": {"name": "test_vit", "num_classes": 10, "drop_path_rate": 0.2, "kwargs": {"img_size": 32}},
    "data": {
        "source": "digits",
        "img_size": 32,
        "limit": 96,
        "workers": 0,
        "degrees": 10,
        "re_prob": 0.5,
        "mixup": 0.2,
    },
    "optimizer": {"lr": 0.002},
    "ema": {"decay": 0.9},
    "epochs": 3,
    "batch_size": 16,
    "tensorboard": False,
}


def write_recipe(folder: Path, **changes: object) -> Path:
    """The tiny recipe with top-level or dotted (``data__limit``) keys changed."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def train(recipe: Path, output: Path, *options: str) -> int:
    """``attnzoo train`` in this process; returns its exit status."""
    torch.set_num_threads(1)
    return main.main(["train", str(recipe), "--output", str(output), "--cpu", *options])


def start(recipe: Path, output: Path, *options: str, processes: int = 1) -> subprocess.Popen:
    """``attnzoo train`` in a process of its own, or in several with gloo."""
    command = [sys.executable, "-m"]
    if processes > 1:
        port = str(20000 + os.getpid() % 20000)
        command += ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port, "-m"]
    command += ["attnzoo.tools.main", "train", str(recipe), "--output", str(output), "--cpu", *options]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def rows(output: Path) -> list[dict[str, str]]:
    """metrics.csv as text, so that a comparison is of every digit."""
    with (output / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
