"""A run in its folder: refuses a folder of another run, resumes, trains, draws the curve."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from ..cli import UserError
from ..data.extras import import_extra
from . import checkpoint
from .config import NO_YAML, as_tree, differing_keys, flat, parse_yaml
from .curve import write_curve
from .progress import Progress
from .schema import Recipe
from .trainer import Trainer

RECIPE_FILE = "recipe.yaml"
FOLDERS, FILES = ("checkpoints", "tensorboard"), ("metrics.csv", "curve.png", "model.safetensors", RECIPE_FILE)
PRECISION = {"none": "no", "bfloat16": "bf16", "float16": "fp16"}


def train(
    recipe: Recipe, output: Path, *, resume: str | None = None, overwrite: bool = False, cpu: bool = False
) -> Progress:
    """Trains a recipe in the folder ``output`` and leaves there, among others, ``model.safetensors`` of the best epoch.

    Args:
        recipe: what to train.
        output: folder of the run; made if it does not exist.
        resume: "auto" for the newest checkpoint in ``output`` that can be read, or the path of one.
        overwrite: begin again in a folder that holds a run, whose files are removed.
        cpu: use no accelerator.

    Returns:
        Where the run stands at its end, with the best epoch and its top-1.

    Raises:
        UserError: what the user can mend; one line.
        CheckpointError: no checkpoint can be resumed.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
        NonFinite: the training has diverged.
    """
    accelerate = import_extra("accelerate")
    # Told of no accelerator, Accelerate joins processes with gloo; else it would let each train on its own.
    cpu = cpu or not torch.accelerator.is_available()
    accelerator = accelerate.Accelerator(cpu=cpu, mixed_precision=PRECISION[recipe.amp_dtype])
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    if accelerator.is_main_process:
        check_output(output, recipe, resume=resume is not None, overwrite=overwrite)
    accelerator.wait_for_everyone()
    # What cannot be built costs no run that is there, and leaves no recipe that the mended one would differ from.
    trainer = Trainer(recipe, output, accelerator)
    if accelerator.is_main_process:
        prepare_output(output, recipe, resume=resume is not None, overwrite=overwrite)
    accelerator.wait_for_everyone()
    _resume(trainer, output, resume)
    progress = trainer.run()
    if accelerator.is_main_process:
        write_curve(output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return progress


def check_output(output: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder, and refuses one that holds another run; what is in it stays.

    Raises:
        UserError: the folder cannot be written, or holds a run that would be mixed up with this one.
    """
    file = output / RECIPE_FILE
    begins_again = overwrite and not resume and file.is_file()
    if not begins_again:
        if file.is_file():
            _check_same_run(file, recipe, resume)
        _check_kinds(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output):
            pass
    except OSError as error:
        problem = "write in" if output.is_dir() else "make"
        raise UserError(f"cannot {problem} the output folder {output}: {error.strerror}") from error


def prepare_output(output: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Removes the run that is to be overwritten, and writes the recipe.

    Raises:
        UserError: as :func:`check_output`.
    """
    file = output / RECIPE_FILE
    if overwrite and not resume and file.is_file():
        _remove_run(output)
    check_output(output, recipe, resume=resume, overwrite=overwrite)
    checkpoint.replace_synced(file, yaml.safe_dump(as_tree(recipe), sort_keys=False).encode())


def _check_same_run(file: Path, recipe: Recipe, resume: bool) -> None:
    try:
        old: Any = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, *NO_YAML):
        old = None
    if not isinstance(old, dict):
        raise UserError(f"{file} cannot be read; choose another --output or give --overwrite")
    different = differing_keys(old, as_tree(recipe))
    if different:
        was, now = flat(old).get(different[0]), flat(as_tree(recipe)).get(different[0])
        more = f" and {len(different) - 1} more keys" if len(different) > 1 else ""
        raise UserError(
            f"{file.parent} holds a run of another recipe ({different[0]} is {was!r} there, {now!r} here{more}); "
            "choose another --output or give --overwrite"
        )
    if not resume:
        raise UserError(f"{file.parent} holds a run of this recipe; give --resume to go on, or --overwrite")


def _check_kinds(output: Path) -> None:
    """Before the work: a file where the run has a folder, or the other way round, could end it at any time."""
    for name in FOLDERS + FILES:
        path = output / name
        if path.exists() and path.is_dir() != (name in FOLDERS):
            kind, needed = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise UserError(f"{path} is a {kind}, where the run has a {needed}; remove it or choose another --output")


def _remove_run(output: Path) -> None:
    for path in (output / name for name in FOLDERS + FILES):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot remove {path}: {error.strerror}") from error


def _resume(trainer: Trainer, output: Path, resume: str | None) -> None:
    if resume is None:
        return
    if resume == "auto":
        loaded = checkpoint.load_newest(output / "checkpoints")
    else:
        loaded = checkpoint.load(Path(resume))
    say = trainer.accelerator.print
    if loaded is None:
        say("no checkpoint yet; beginning from the first epoch")
        return
    for reason in loaded.skipped:
        say(f"skipped a checkpoint: {reason}")
    trainer.resume(loaded)
    here = trainer.progress
    say(f"resumed from {loaded.path.name}: {here.epoch} epochs and {here.update} updates done")
