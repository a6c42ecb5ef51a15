"""Writing a traced program as ONNX or PT2, and reading such a file back to run it."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..cli import UserError
from ..data.extras import import_extra

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
# What torch.onnx writes; its converter to older ones fails on most attention models.
OPSETS = range(18, 24)
DEFAULT_OPSET = 20

_AXES = {0: "batch", 2: "height", 3: "width"}

Run = Callable[[Tensor], list[Tensor]]


def require(format: str, opset: int) -> None:
    """Checks a format and what it needs, before the work.

    Raises:
        UserError: no such opset, or a package is not installed.
    """
    if format != "onnx":
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, extra="export")
    if opset not in OPSETS:
        raise UserError(f"--opset is {opset}; {OPSETS.start} to {OPSETS.stop - 1} can be written")


def metadata(model: nn.Module, name: str, weights: dict[str, Any], digest: str) -> dict[str, str]:
    """What a program that runs the file has to know: how images are prepared, and what comes out."""
    cfg = model.pretrained_cfg
    facts = {
        "model": name,
        "weights": weights.get("source"),
        "weights_sha256": digest,
        "input_size": cfg["input_size"],
        "mean": cfg["mean"],
        "std": cfg["std"],
        "interpolation": cfg["interpolation"],
        "crop_pct": cfg["crop_pct"],
        "num_classes": model.num_classes,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def write(program: ExportedProgram, path: Path, facts: dict[str, str], opset: int = DEFAULT_OPSET) -> None:
    """Writes a program in the format that the path's suffix names.

    Args:
        facts: goes into ONNX's ``metadata_props``, or into a file ``metadata.json`` inside a PT2 archive.

    Raises:
        UserError: the program cannot be written in this opset.
    """
    if path.suffix == SUFFIXES["pt2"]:
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts, indent=1)})
        return
    _fix_strides(program)
    with silence():
        try:
            written = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                dynamic_shapes=(_open_axes(program),),
                verbose=False,
                optimize=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(f"the model cannot be written as ONNX: {cause}") from None
        found = written.model.opset_imports.get("")
        if found != opset:
            raise UserError(f"--opset {opset}: the model needs operators of opset {found}; --opset {found} works")
        # Folding a resize means onnx's reference evaluator, which takes minutes; onnxruntime folds it when it loads.
        optimizer = import_extra("onnxscript.optimizer", extra="export")
        optimizer.optimize_ir(written.model, should_fold=lambda node: False if node.op_type == "Resize" else None)
        written.model.metadata_props.update(facts)
        _name_outputs(written.model.graph.outputs)
        written.save(path)


def open_file(path: Path) -> Run:
    """What runs a written file, on one CPU thread as PyTorch's.

    Raises:
        UserError: the runtime cannot open it.
    """
    if path.suffix == SUFFIXES["pt2"]:
        module = torch.export.load(path).module()
        return lambda images: run_model(module, images)
    runtime = import_extra("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its extension module
        raise UserError(f"onnxruntime cannot open the file: {' '.join(str(error).split())[:200]}") from None
    (entry,) = session.get_inputs()
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {entry.name: images.numpy()})]


def run_model(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the model itself gives, as :func:`open_file`'s function does."""
    with torch.no_grad():
        return _listed(model(images))


def _open_axes(program: ExportedProgram) -> dict[int, str]:
    """The axes of the images whose length is open, and what they are called in the file."""
    (name,) = program.graph_signature.user_inputs
    (images,) = (node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if node.name == name)
    return {axis: label for axis, label in _AXES.items() if isinstance(images.shape[axis], torch.SymInt)}


def _fix_strides(program: ExportedProgram) -> None:
    """Copies every result of scaled-dot-product attention, so that views of it see the same strides throughout.

    torch.export and the ONNX exporter's decompositions disagree about them: a view that holds in the one fails in the
    other. ONNX itself has no strides, and its optimizer takes the copies out.
    """
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default):
        with graph.inserting_after(node):
            copy = graph.call_function(torch.ops.aten.clone.default)
        node.replace_all_uses_with(copy)
        copy.args, copy.kwargs = (node,), {"memory_format": torch.contiguous_format}
        copy.meta = dict(node.meta)
    program.graph_module.recompile()


def _name_outputs(outputs: Any) -> None:
    names = ["logits"] if len(outputs) == 1 and len(outputs[0].shape) == 2 else [f"map{i}" for i in range(len(outputs))]
    for output, name in zip(outputs, names, strict=True):
        output.name = name


def _listed(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The exporter speaks to its developers, on both streams and through warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
