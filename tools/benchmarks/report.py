"""The file that a benchmark writes, and its tables in Markdown."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..cli import UserError
from ..files import read_json, write_atomic
from .whole import lacking

FORMAT = "attnzoo-bench/1"
SUBJECTS = ("ops", "layers", "models")

_OPS_HEAD = ("× ours", "× floor", "peak MB", "error")
# What a row of ``models`` was measured with, beside the model.
_GRID = ("device", "dtype", "backend", "batch", "img_size")

Report = dict[str, Any]


def write_report(path: Path, report: Report) -> None:
    """Writes ``{"format": …, "subject": …, "setting": …, "rows": …}`` as JSON.

    Raises:
        UserError: it cannot be written.
    """
    write_atomic(path, (json.dumps({"format": FORMAT, **report}, indent=1, ensure_ascii=False) + "\n").encode())


def read_report(path: Path, tables: bool = False) -> Report:
    """What :func:`write_report` wrote.

    Args:
        tables: whether tables of models are to be written of it, too, and not pictures alone.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    report = read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT or report.get("subject") not in SUBJECTS:
        raise UserError(f"{path} is no report of attnzoo bench ops, layers or models")
    if lost := lacking(report, tables):
        raise UserError(f"{path} is no whole report: {lost} is missing, or not what attnzoo bench writes")
    return report


def markdown(report: Report) -> str:
    """The report's setting in a sentence, and its table."""
    tables = {"ops": ops_table, "layers": layers_table, "models": models_table}
    return f"{_setting(report['setting'])}\n\n{tables[report['subject']](report)}"


def _setting(setting: dict[str, Any]) -> str:
    mode = "forward and backward" if setting["backward"] else "forward"
    parts = [
        f"Measured {setting['date']} on {setting['device']}",
        f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}",
        setting["dtype"],
        mode,
        f"timed by {setting['timer']}",
        f"Python {setting['python']}",
        f"PyTorch {setting['torch']}",
        *(f"{name} {version}" for name, version in setting["packages"].items()),
    ]
    text = ", ".join(parts) + "."
    if setting.get("copy_gb_per_second"):
        text += (
            f" Ceilings in this run: copies {setting['copy_gb_per_second']:.1f} GB/s, matrix products "
            f"{setting['matmul_gflops']:.0f} GFLOP/s."
        )
    if setting["load"] is not None:
        text += f" Load average at the start: {setting['load']:.1f}."
    return text


def ops_table(report: Report) -> str:
    """A table an op; the sides of each case in the order of their times."""
    parts = []
    called = _called(report)
    for op in dict.fromkeys(row["op"] for row in report["rows"]):
        rows = [line for row in report["rows"] if row["op"] == op for line in _op_rows(row, len(called))]
        parts.append(f"#### {op}\n\n{_table(('case', 'form', 'ms', *called, *_OPS_HEAD), rows)}")
    return "\n".join(parts)


def _op_rows(row: dict[str, Any], called: int) -> Iterable[tuple[str, ...]]:
    label = f"{row['case']}, batch {row['batch']}; floor {_ms(row['floor_seconds'])} ms, {row['bytes'] / 1e6:.1f} MB"
    for side in sorted(row["sides"], key=lambda side: side["seconds"]):
        yield (
            label,
            side["form"],
            _ms(side["seconds"]),
            *[_ms(side.get("called_seconds", 0))] * called,
            f"{side['ratio']:.2f}",
            f"{side['floor_ratio']:.1f}",
            f"{side['peak_bytes'] / 1e6:.1f}",
            f"{side['error']:.0e}",
        )
        label = ""
    for side in row.get("absent", ()):
        yield (label, side["form"], f"none: {side['reason']}".replace("|", "\\|"), *[""] * (4 + called))


def layers_table(report: Report) -> str:
    """All layers in one table; the sides of each in the order of their times."""
    rows = []
    called = _called(report)
    for row in report["rows"]:
        label = f"`{row['layer']}`, {row['case']}, batch {row['batch']}"
        for side in sorted(row["sides"], key=lambda side: side["seconds"]):
            times = (_ms(side["seconds"]), *[_ms(side.get("called_seconds", 0))] * len(called))
            rows.append((label, side["form"], *times, f"{side['ratio']:.2f}", f"{side['peak_bytes'] / 1e6:.1f}"))
            label = ""
    head = "block of" if report["setting"].get("block") else "layer"
    return _table((head, "form", "ms", *called, "× ours", "peak MB"), rows)


def _called(report: Report) -> tuple[str, ...]:
    """The head of the column for the times of calls, where those of their kernels stand beside them."""
    sides = [side for row in report["rows"] for side in row["sides"]]
    return ("as called, ms",) if any("called_seconds" in side for side in sides) else ()


def models_table(report: Report) -> str:
    """A row a side; what differs between models' rows beside the model gets a column."""
    varying = [name for name in _GRID if len({str(row.get(name)) for row in report["rows"]}) > 1]
    head = ("model", *map(_title, varying), "parameters (M)", "form")
    head += ("images/s", "× eager", "× floor", "peak MB", "error")
    rows = []
    for row in report["rows"]:
        for side in row["sides"]:
            rows.append(
                (
                    f"`{row['model']}`",
                    *(_cell(row.get(name)) for name in varying),
                    f"{row['parameters'] / 1e6:.1f}",
                    side["form"],
                    f"{side['images_per_second']:.1f}",
                    _times(side.get("ratio"), 2),
                    _times(side.get("floor_ratio"), 1),
                    f"{side['peak_bytes'] / 1e6:.0f}",
                    "–" if side["error"] is None else f"{side['error']:.0e}",
                )
            )
    return _table(head, rows)


def models_csv(report: Report) -> str:
    """A line a side, and one for each combination that could not be measured, with the reason."""
    plain = ("form", "error", "seconds", "samples", "undisturbed", "images_per_second", "peak_bytes")
    plain += ("ratio", "floor_ratio")
    energy = ("joules_per_image", "no_energy_because")
    latencies = ("p50", "p90", "p99")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    needs = ("parameters", "bytes", "flops", "floor_seconds")
    writer.writerow(["model", *_GRID, *needs, *plain, *latencies, *energy, "failed"])
    for row in report["rows"]:
        known = [row["model"], *(_cell(row.get(name)) for name in _GRID), *map(row.get, needs)]
        for side in row["sides"]:
            times = [side.get("latency", {}).get(name) for name in latencies]
            writer.writerow([*known, *map(side.get, plain), *times, *map(side.get, energy), None])
    for row in report.get("failed", []):
        known = [row["model"], *(_cell(row.get(name)) for name in _GRID), *[None] * len(needs), row["form"]]
        writer.writerow([*known, *[None] * (len(plain) - 1 + len(latencies) + len(energy)), row["reason"]])
    return text.getvalue()


def _title(name: str) -> str:
    return {"img_size": "pixels", "dtype": "type"}.get(name, name)


def _times(ratio: float | None, digits: int) -> str:
    return "–" if ratio is None else f"{ratio:.{digits}f}"


def _cell(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"
