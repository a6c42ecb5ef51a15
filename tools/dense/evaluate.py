"""``attnzoo mm test``: metrics and predictions of a checkpoint, every tensor of which was used."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...weights.cache import file_sha256
from ...weights.kinds import sniff
from ..cli import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_OK, UserError
from ..signals import sigterm_raises
from .config import find_config, load_config
from .results import Predictions, write_results
from .session import build_loops, build_runner, check_data, check_writable, prepare_work_dir, set_launcher

if TYPE_CHECKING:
    from mmengine.config import Config

_VISUALS = {
    "mmdet": ("DetVisualizationHook", "DetLocalVisualizer"),
    "mmseg": ("SegVisualizationHook", "SegLocalVisualizer"),
}


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit status.

    Raises:
        UserError, CheckpointError: what the user can mend; one line.
    """
    config = load_config(args.config, args.cfg_options, args.data_root)
    for key in ("test_dataloader", "test_cfg", "test_evaluator"):
        if not config.get(key):
            raise UserError(f"this config cannot test: it has no {key}")
    if "://" not in args.checkpoint:
        sniff(args.checkpoint)
    if args.out is not None:
        check_out(args.out)
    prepare_work_dir(config, find_config(args.config).name, args.work_dir)
    set_launcher(config, args.launcher)
    if args.show_dir is not None:
        check_writable(args.show_dir)
        draw_into(config, args.show_dir)
    config.load_from, config.resume = args.checkpoint, False
    _use_averaged(config)
    try:
        with sigterm_raises(KeyboardInterrupt):
            metrics, bad, images = test(config, predictions := Predictions(keep=args.out is not None))
    except KeyboardInterrupt:
        print("attnzoo mm test: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    if args.out is not None:
        about = {"config": args.config, "checkpoint": args.checkpoint}
        if "://" not in args.checkpoint:
            about["sha256"] = file_sha256(args.checkpoint)
        write_results(args.out, {**about, "metrics": metrics, "images": images, "not_finite": bad}, predictions.rows)
    return _report(metrics, bad, images)


def test(config: "Config", predictions: Predictions) -> tuple[dict[str, Any], list[str], int]:
    """Test a config that is ready in every respect.

    Returns:
        The metrics, the images whose outputs were not finite, and how many images there were.
    """
    from .hooks import FiniteOutputs

    check_data(config, ("test_dataloader",))
    runner = build_runner(config)
    runner.whole = True
    watch = FiniteOutputs()
    runner.register_hook(watch)
    runner.register_hook(predictions.hook())
    build_loops(runner, "test_loop")
    metrics = runner.test()
    return metrics, watch.images, len(runner.test_loop.dataloader.dataset)


def check_out(out: Path) -> None:
    """Refuse, before the work, a results file that could not be written after it.

    Raises:
        UserError: it is no .json, or its folder cannot be written to.
    """
    if out.suffix != ".json":
        raise UserError(f"--out writes JSON: name it .json, not '{out.name}'")
    if out.is_dir():
        raise UserError(f"--out is a folder: {out}")
    check_writable(out.parent)


def draw_into(config: "Config", folder: Path) -> None:
    """Let the visualization hook draw every prediction into a folder."""
    hook, visualizer = _VISUALS[config.default_scope]
    config.setdefault("default_hooks", {})
    drawing = dict(config.default_hooks.get("visualization") or {"type": hook})
    drawing["draw"] = True
    config.setdefault(
        "visualizer", {"type": visualizer, "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"}
    )
    if config.default_scope == "mmdet":
        drawing["test_out_dir"] = str(folder.resolve())
    else:
        config.visualizer.save_dir = str(folder.resolve())
        config.visualizer.name = str(folder.resolve())  # MMEngine keeps one of each name
    config.default_hooks.visualization = drawing


def _use_averaged(config: "Config") -> None:
    """Without the hook that swaps averaged weights in: a file's ``state_dict`` is them already."""
    hooks = config.get("custom_hooks") or []
    config.custom_hooks = [hook for hook in hooks if not str(hook.get("type")).endswith("EMAHook")]


def _report(metrics: dict[str, Any], bad: list[str], images: int) -> int:
    from .hooks import non_finite

    for name, value in metrics.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    parts = []
    if not metrics:
        parts.append(f"nothing was found in {images} images, so there is no metric")
    if bad:
        parts.append(f"{len(bad)} of {images} images had outputs that are not finite ({', '.join(bad[:5])})")
    if names := non_finite(metrics):
        parts.append(f"metrics not finite: {', '.join(names)}")
    if parts:
        print(f"attnzoo mm test: {'; '.join(parts)}", file=sys.stderr)
    return EXIT_INCOMPLETE if parts else EXIT_OK
