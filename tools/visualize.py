"""Draw what a model's layers look at, for chosen pixels of photographs.

Writes one picture for every photograph and layer. Weights are the checkpoint's, those of the name's tag (such as
``dinat_nano.digits``) or, with --pretrained, the model's default ones; else random ones, and the pictures say so.
"""

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import EXIT_OK, MOST_CLASSES, MOST_SEED, MOST_SIDE, UserError, up_to, whole_number

if TYPE_CHECKING:
    from ..zoo import AttentionMap
    from .evaluation.models import Subject
    from .visualization.scene import Photograph

ANALYSES = ("head-importance", "attention-distance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model of attnzoo or timm, with or without tag")
    parser.add_argument("images", metavar="IMAGE", nargs="*", type=Path, help="photographs")
    parser.add_argument("--layer", nargs="+", metavar="NAME", help="layers, * and ? allowed (one of a kind and size)")
    parser.add_argument("--query", type=_point, metavar="X,Y", help="pixel of the photograph to ask about (the centre)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to load")
    parser.add_argument("--pretrained", action="store_true", help="load the model's default published weights")
    parser.add_argument(
        "--num-classes", type=whole_number(1, MOST_CLASSES), metavar="N", help="classes of the checkpoint's classifier"
    )
    parser.add_argument("--seed", type=whole_number(0, MOST_SEED), default=0, help="seed of random weights")
    parser.add_argument(
        "--img-size",
        type=up_to(MOST_SIDE),
        nargs="+",
        metavar="N",
        help="shorter side, or height and width (the model's)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("out/visualize"), help="where pictures go")
    parser.add_argument("--html", action="store_true", help="also write index.html, one page with every picture in it")
    parser.add_argument("--analysis", choices=ANALYSES, help="measure this over all photographs instead")
    parser.add_argument("--target", type=int, metavar="CLASS", help="class of head-importance (the predicted one)")
    parser.add_argument("--list-layers", action="store_true", help="print the layers that have maps, and stop")


def run(args: argparse.Namespace) -> int:
    from .visualization.scene import grey, load_photographs

    _check(args)
    subject = _subject(args)
    if args.list_layers:
        _print_layers(_maps(subject, grey(subject, args.img_size), None, None))
        return EXIT_OK
    photographs = load_photographs(args.images, subject, args.img_size)
    if args.analysis:
        written = _analyse(args, subject, photographs)
    else:
        written = _draw(args, subject, photographs)
    if args.html:
        from .files import write_atomic
        from .visualization.page import page

        written.append(args.output / "index.html")
        write_atomic(written[-1], page(_title(args), written[:-1], args.output))
    for path in written:
        print(path)
    return EXIT_OK


def _point(text: str) -> tuple[float, float]:
    x, _, y = text.partition(",")
    try:
        return float(x), float(y)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pixel; 120,80 works") from None


def _check(args: argparse.Namespace) -> None:
    if args.img_size and (len(args.img_size) > 2 or min(args.img_size) < 1):
        raise UserError(f"--img-size takes one or two numbers of at least 1, not {' '.join(map(str, args.img_size))}")
    if not args.images and not args.list_layers:
        raise UserError("no photograph given; attnzoo visualize MODEL IMAGE draws one, --list-layers needs none")
    if args.checkpoint and args.pretrained:
        raise UserError("--checkpoint and --pretrained both say where weights come from; give one of them")


def _subject(args: argparse.Namespace) -> "Subject":
    import timm
    import torch

    from .evaluation.models import check_name, load_subject

    check_name(args.model)
    cfg = timm.get_pretrained_cfg(args.model)
    published = cfg is not None and cfg.has_weights
    if args.pretrained and not published:
        raise UserError(f"{args.model} has no published weights; --checkpoint FILE takes others")
    tagged = "." in args.model and published
    torch.manual_seed(args.seed)
    random = not (args.checkpoint or args.pretrained or tagged)
    classes = args.num_classes if args.checkpoint or random else None
    settings: dict[str, Any] = dict(checkpoint=args.checkpoint, random_weights=random, num_classes=classes)
    return load_subject(args.model, **settings, device=torch.device("cpu"))


def _maps(
    subject: "Subject", image: Any, layers: list[str] | None, query: tuple[float, float] | None
) -> "dict[str, AttentionMap]":
    """The maps of the layers whose names match, of all where None."""
    from ..zoo import attention_maps

    size = f"{image.shape[-2]}x{image.shape[-1]}"
    try:
        maps = attention_maps(subject.model, image, query=query)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{subject.name} gives no maps of a {size} image: {error}") from None
    if layers is None:
        return maps
    for pattern in layers:
        if not fnmatch.filter(maps, pattern):
            raise UserError(f"{subject.name} has no attention map of layer {pattern}; it has {', '.join(maps)}")
    return {name: one for name, one in maps.items() if any(fnmatch.fnmatch(name, pattern) for pattern in layers)}


def _print_layers(maps: "dict[str, AttentionMap]") -> None:
    from .visualization.drawing import describe

    width = max(map(len, maps))
    for name, one in maps.items():
        print(f"{name:{width}}  {describe(one)}")


def _draw(args: argparse.Namespace, subject: "Subject", photographs: "list[Photograph]") -> list[Path]:
    from .files import write_atomic
    from .visualization.drawing import draw_map
    from .visualization.panels import to_png

    # All are asked before the first is drawn: a query outside the last photograph is known at once.
    queries = [photograph.query(args.query) for photograph in photographs]
    written = []
    for photograph, query in zip(photographs, queries, strict=True):
        maps = _maps(subject, photograph.tensor, args.layer, query)
        for name, one in (maps if args.layer else _last_of_each_kind(maps)).items():
            figure = draw_map(one, photograph.picture, subject.name, *_origin(args, subject))
            parts = (subject.name, photograph.name, *name.split(":"))
            written.append(_folder(args.output) / f"{'.'.join(filter(None, parts))}.png")
            write_atomic(written[-1], to_png(figure))
    return written


def _analyse(args: argparse.Namespace, subject: "Subject", photographs: "list[Photograph]") -> list[Path]:
    from .visualization import analysis

    chosen = [_maps(subject, photograph.tensor, args.layer, None) for photograph in photographs]
    if args.analysis == "attention-distance":
        table = analysis.attention_distances(chosen)
    else:
        table = analysis.head_importance(
            subject.model, [photograph.tensor for photograph in photographs], chosen, args.target
        )
    return analysis.write(table, _folder(args.output) / subject.name, _title(args), *_origin(args, subject))


def _last_of_each_kind(maps: "dict[str, AttentionMap]") -> "dict[str, AttentionMap]":
    last = {(type(one), one.grid, name.partition(":")[2]): name for name, one in maps.items()}
    return {name: maps[name] for name in maps if name in last.values()}


def _title(args: argparse.Namespace) -> str:
    return f"{args.analysis or 'attention maps'} of {args.model}"


def _origin(args: argparse.Namespace, subject: "Subject") -> tuple[str, str]:
    """Where the weights are from, and a warning where they are not trained."""
    source = subject.weights["source"]
    if source == "random":
        return f"(seed {args.seed}); nothing here was learned", "random weights"
    if source == "checkpoint":
        return f"weights: {Path(args.checkpoint).name}", ""
    return f"weights: {subject.weights['tag']}, {subject.weights['origin']}", ""


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None
    return path
