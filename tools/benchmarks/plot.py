"""Draw accuracy against speed, or time and memory against image size, from the reports of attnzoo bench models."""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cli import EXIT_OK, UserError, did_you_mean
from .accuracies import Accuracy, published_accuracy
from .options import check_files
from .report import Report, read_report
from .sides import FORMS

KINDS = ("accuracy", "resolution")
_SUFFIXES = (".png", ".svg", ".pdf")

# What makes two runs comparable.
_RUN = ("device", "threads", "date", "timer", "torch")
_VARYING = {"device": "{}", "dtype": "{}", "backend": "{}", "batch": "batch {}"}


@dataclass(frozen=True)
class Point:
    """One side of a report.

    Attributes:
        series: what the legend calls it: the model, and what else differs between the points.
        milliseconds: of one image.
        megabytes: peak of the whole batch, beyond weights and images.
    """

    model: str
    series: str
    img_size: tuple[int, int]
    milliseconds: float
    megabytes: float
    accuracy: Accuracy | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json", help="what bench models --json wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=", ".join(_SUFFIXES))
    parser.add_argument("--kind", choices=KINDS, help="what to draw (resolution if there are several sizes)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--form", default="eager", choices=FORMS, help="which form's times")
    parser.add_argument("--label", nargs="+", metavar="TEXT", help="a name for each file, to draw several runs")


def run(args: argparse.Namespace) -> int:
    from ..data.extras import import_extra

    if args.output.suffix not in _SUFFIXES:
        raise UserError(f"--output {args.output}: a picture's name ends in {', '.join(_SUFFIXES)}")
    check_files(args.output)
    import_extra("matplotlib", extra="visualize")
    reports = [read_report(path) for path in args.results]
    labels = check_runs(args.results, reports, args.label)
    points = [point for label, report in zip(labels, reports, strict=True) for point in points_of(report, args, label)]
    kind = args.kind or ("resolution" if len({point.img_size for point in points}) > 1 else "accuracy")
    from . import charts

    captions = [caption(report, label) for report, label in zip(reports, labels, strict=True)]
    if kind == "resolution":
        figure = charts.resolution(points, captions)
    else:
        figure = charts.accuracy(with_accuracy(points), captions)
    charts.save(figure, args.output)
    print(f"wrote {args.output}")
    return EXIT_OK


def check_runs(paths: list[Path], reports: list[Report], labels: list[str] | None) -> list[str]:
    """A label for each report, empty where none was given.

    Raises:
        UserError: a report is not of models, the labels are not one a file, or runs differ and have none.
    """
    for path, report in zip(paths, reports, strict=True):
        if report["subject"] != "models":
            raise UserError(f"{path} is a report of bench {report['subject']}; plot draws those of bench models")
    if labels is not None:
        if len(labels) != len(paths) or len(set(labels)) != len(labels):
            raise UserError(f"--label has {len(labels)} names; {len(paths)} different ones are needed, one a file")
        return labels
    first = reports[0]["setting"]
    for path, report in zip(paths, reports, strict=True):
        for name in _RUN:
            if report["setting"][name] != first[name]:
                raise UserError(
                    f"{path} is another run than {paths[0]}: {name} is {report['setting'][name]}, not {first[name]}; "
                    "times of different runs do not compare; --label names each to draw them all the same"
                )
    return [""] * len(paths)


def points_of(report: Report, args: argparse.Namespace, label: str) -> list[Point]:
    """The points of a report.

    Raises:
        UserError: none are left, or a model that was asked for is not in it.
    """
    rows = report["rows"]
    known = {row["model"] for row in rows}
    if missing := [name for name in args.models or () if name not in known]:
        raise UserError(f"no row of the report is {missing[0]}{did_you_mean(missing[0], known)}")
    varying = [name for name in _VARYING if len({row.get(name) for row in rows}) > 1]
    found = []
    for row in rows:
        if args.models and row["model"] not in args.models:
            continue
        parts = [row["model"], *(_VARYING[name].format(row.get(name)) for name in varying), *filter(None, [label])]
        size = tuple(row.get("img_size", (224, 224)))
        for side in row["sides"]:
            if side["form"] == args.form:
                milliseconds = side["seconds"] * 1e3 / row["batch"]
                found.append(Point(row["model"], ", ".join(parts), size, milliseconds, side["peak_bytes"] / 1e6))
    if not found:
        raise UserError(f"the report has no {args.form} times to draw")
    return found


def with_accuracy(points: list[Point]) -> list[Point]:
    """The points whose accuracy is published at their size; says which are not.

    Raises:
        UserError: there are none.
    """
    found = [replace(point, accuracy=published_accuracy(point.model, point.img_size)) for point in points]
    left_out = [point.model for point in found if point.accuracy is None]
    if left_out:
        print(f"no accuracy is published at that size for {', '.join(left_out)}: left out", file=sys.stderr)
    if len(left_out) == len(found):
        raise UserError("nothing to draw: no model of the report has a published accuracy at its image size")
    return [point for point in found if point.accuracy is not None]


def caption(report: Report, label: str) -> str:
    """What a run was measured on, in a line."""
    setting: dict[str, Any] = report["setting"]
    batches = "/".join(dict.fromkeys(str(row["batch"]) for row in report["rows"]))
    parts = [
        setting["device"],
        f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}",
        setting["dtype"],
        f"batch {batches}",
        "forward and backward" if setting["backward"] else "forward",
        setting["timer"],
        f"PyTorch {setting['torch']}",
        setting["date"],
    ]
    if setting["load"] is not None:
        parts.append(f"load average {setting['load']}")
    return (f"{label}: " if label else "") + ", ".join(parts)
