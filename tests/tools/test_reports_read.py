"""Reports that were cut, edited or mixed up: refused with the file and the place, whatever reads them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import attnzoo
from attnzoo.tools.benchmarks.report import read_report
from attnzoo.tools.cli import UserError
from attnzoo.tools.exporting import sweep
from attnzoo.tools.main import main

RESULTS = Path(attnzoo.__file__).parent / "results"
WHOLE = json.loads((RESULTS / "cpu-models.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("cpu-[!d]*.json")), ids=lambda path: path.stem)
def test_what_was_measured_is_whole(path: Path) -> None:
    assert read_report(path, tables="models" in path.stem)["rows"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("setting", None), ("setting", []), ("setting.threads", True), ("setting.torch", 2.15), ("rows", {}),
        ("rows.0", 1), ("rows.0.sides", None), ("rows.0.batch", 0), ("rows.0.img_size", [224]),
        ("rows.0.sides.0.seconds", "1"), ("rows.0.sides.0.seconds", float("nan")), ("rows.0.sides.0.form", ...),
        ("rows.0.parameters", ...), ("failed", [{"model": "van_b0"}]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_missing_is_named(place: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = copy.deepcopy(WHOLE)
    *way, last = (int(part) if part.isdecimal() else part for part in place.split("."))
    part = report
    for key in way:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    named = place.replace(".0", "[0]")
    with pytest.raises(UserError, match="is no whole report") as refused:
        read_report(file, tables=True)
    assert named in str(refused.value)
    assert main(["bench", "models", "dinat_nano", "--json", str(file), "--resume"]) == 2
    if last != "parameters":  # pictures do without
        assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 2
    assert all(line.startswith("attnzoo bench: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("rest", [{}, {"models": 1}, {"models": {"van_b0": {}}}, {"models": {}}], ids=str)
def test_exports_of_another_kind(rest: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "export.json"
    words = ["export", "dinat_nano", "--all", "--check-only", "--format", "pt2", "--json", str(file), "--resume"]
    for text in (json.dumps({"format": sweep.FORMAT, **rest}), "[" * 100_000):
        file.write_text(text)
        assert main(words) == 2
        assert str(file) in capsys.readouterr().err
