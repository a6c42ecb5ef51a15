"""``attnzoo bench plot``: what is drawn where, which runs are refused, and the published accuracies."""

import json
from pathlib import Path

import pytest
from PIL import Image

from attnzoo.tools.benchmarks import charts, plot
from attnzoo.tools.benchmarks.accuracies import _TIMM, published_accuracy
from attnzoo.tools.main import main

SETTING = {
    "device": "an abacus",
    "timer": "processor time",
    "threads": 1,
    "load": 0.5,
    "python": "3.11",
    "torch": "2.15",
    "date": "2026-11-23",
    "dtype": "float32",
    "backward": False,
    "compile": False,
}
SIZES = (224, 448)


def write(path: Path, names: list[str], sizes: tuple[int, ...] = SIZES, **setting: object) -> Path:
    """A report in which an image takes side / 10 milliseconds and a batch side megabytes; batches are of 4."""
    rows = [
        {
            "model": name,
            "batch": 4,
            "img_size": [side, side],
            "device": "cpu",
            "dtype": "float32",
            "backend": "auto",
            "parameters": 1,
            "sides": [{"form": "eager", "seconds": 4 * side / 1e4, "peak_bytes": side * 10**6, "error": None}],
        }
        for side in sizes
        for name in names
    ]
    report = {"format": "attnzoo-bench/1", "subject": "models", "setting": {**SETTING, **setting}, "rows": rows}
    path.write_text(json.dumps(report))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = charts.save
    monkeypatch.setattr(charts, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


def test_time_and_memory_against_resolution(tmp_path: Path, drawn: list) -> None:
    file = write(tmp_path / "a.json", ["van_b0", "convnext_tiny"])
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1000, 520)
    times, memory = drawn[0].axes
    ours, other = times.get_lines()
    assert (ours.get_label(), other.get_label()) == ("van_b0", "convnext_tiny")
    assert (ours.get_linestyle(), other.get_linestyle()) == ("-", "--")
    assert list(ours.get_xdata()) == list(SIZES)
    assert list(ours.get_ydata()) == pytest.approx([22.4, 44.8])
    assert list(memory.get_lines()[1].get_ydata()) == [224, 448]
    assert "an abacus, 1 thread, float32, batch 4" in drawn[0].get_supxlabel()


def test_the_side_is_the_squares_of_as_many_pixels(tmp_path: Path, drawn: list) -> None:
    file = write(tmp_path / "a.json", ["van_b0"])
    text = file.read_text()
    for size, label in (("[224, 224]", "side"), ("[224, 56]", "√(height × width)")):
        file.write_text(text.replace(json.dumps([224, 224]), size))
        assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 0
        assert [axes.get_xlabel() for axes in drawn[-1].axes] == [f"{label} of the image (pixels, log)"] * 2


@pytest.mark.parametrize("sizes", [(224, 448), (32, 40, 56), (100, 2000)], ids=str)
def test_axes_have_numbers(sizes: tuple[int, ...], tmp_path: Path, drawn: list) -> None:
    file = write(tmp_path / "a.json", ["van_b0", "convnext_tiny"], sizes)
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 0
    for axes in drawn[0].axes:
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_accuracy_against_throughput(tmp_path: Path, drawn: list, capsys) -> None:
    file = write(tmp_path / "a.json", ["van_b0", "s2aformer_mini", "vit_small_patch16_224"], sizes=(224,))
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.svg")]) == 0
    assert "no accuracy is published at that size for s2aformer_mini: left out" in capsys.readouterr().err
    (axes,) = drawn[0].axes
    points = [line for line in axes.get_lines() if len(line.get_xdata())]
    found = [(float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_marker()) for line in points]
    rate = pytest.approx(1e3 / 22.4)
    assert found == [(rate, 75.4, "o"), (rate, 81.384, "s")]
    # Weights that saw more than ImageNet-1k are hollow.
    assert [line.get_markerfacecolor() for line in points] == ["tab:blue", "none"]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_old_reports_without_sizes_are_of_224_pixels(tmp_path: Path, drawn: list) -> None:
    file = write(tmp_path / "a.json", ["van_b0"], sizes=(224,))
    report = json.loads(file.read_text())
    for row in report["rows"]:
        for name in ("img_size", "device", "dtype", "backend"):
            del row[name]
    file.write_text(json.dumps(report))
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 0
    assert drawn[0].axes[0].get_title(loc="left") == "Accuracy against speed"


@pytest.mark.parametrize(("key", "value"), [("device", "a loom"), ("threads", 2), ("date", "2026-11-24")])
def test_different_runs_are_not_mixed_without_labels(key: str, value: object, tmp_path: Path, drawn, capsys) -> None:
    files = [write(tmp_path / "a.json", ["van_b0"]), write(tmp_path / "b.json", ["van_b0"], **{key: value})]
    words = ["bench", "plot", *map(str, files), "--output", str(tmp_path / "a.png")]
    assert main(words) == 2
    assert f"{key} is {value}, not {SETTING[key]}" in capsys.readouterr().err and not (tmp_path / "a.png").exists()
    assert main([*words, "--label", "before", "after"]) == 0
    assert [line.get_label() for line in drawn[0].axes[0].get_lines()] == ["van_b0, before", "van_b0, after"]
    captions = drawn[0].get_supxlabel().split("\n")
    assert [caption.partition(":")[0] for caption in captions] == ["before", "after"]


def test_runs_of_one_machine_and_day_need_no_label(tmp_path: Path, drawn: list) -> None:
    files = [write(tmp_path / "a.json", ["van_b0"]), write(tmp_path / "b.json", ["van_b1"])]
    assert main(["bench", "plot", *map(str, files), "--output", str(tmp_path / "a.png")]) == 0
    assert len(drawn[0].axes[0].get_lines()) == 2


def test_series_name_what_differs(tmp_path: Path, drawn: list) -> None:
    file = write(tmp_path / "a.json", ["van_b0"])
    report = json.loads(file.read_text())
    report["rows"] += [{**row, "batch": 8} for row in report["rows"]]
    file.write_text(json.dumps(report))
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 0
    assert [line.get_label() for line in drawn[0].axes[0].get_lines()] == ["van_b0, batch 4", "van_b0, batch 8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.gif"], "a picture's name ends in .png"),
        (["--output", "nowhere/a.png"], "nowhere/a.png cannot be written"),
        (["--output", "a.png", "--models", "van_b1"], "no row of the report is van_b1; did you mean van_b0"),
        (["--output", "a.png", "--form", "compiled"], "no compiled times"),
        (["--output", "a.png", "--label", "x", "y"], "--label has 2 names; 1 different ones"),
        (["--output", "a.png", "--kind", "accuracy", "--models", "s2aformer_mini"], "nothing to draw"),
    ],
)
def test_bad_input(words: list[str], message: str, tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "a.json", ["van_b0", "s2aformer_mini"])
    assert main(["bench", "plot", str(file), *words]) == 2
    assert message in capsys.readouterr().err


def test_reports_of_ops_are_refused(tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "a.json", ["van_b0"])
    file.write_text(file.read_text().replace('"models"', '"ops"'))
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 2
    assert "is a report of bench ops" in capsys.readouterr().err


def test_matplotlib_is_named_where_it_is_missing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(plot.sys.modules, "matplotlib", None)
    file = write(tmp_path / "a.json", ["van_b0"])
    assert main(["bench", "plot", str(file), "--output", str(tmp_path / "a.png")]) == 2
    assert "pip install 'attnzoo[visualize]'" in capsys.readouterr().err


def test_published_accuracies() -> None:
    assert published_accuracy("van_b0", (224, 224)).top1 == 75.4
    assert published_accuracy("van_b0", (256, 256)) is None and published_accuracy("van_b0", (224, 256)) is None
    # Trained on ImageNet-22k and fine-tuned: at 224 pixels only so.
    assert published_accuracy("dinat_large", (224, 224)).more_data
    assert not published_accuracy("swin_tiny_patch4_window7_224", (224, 224)).more_data
    assert all(70 < row.top1 < 90 for row in _TIMM.values())


def test_names_cover_neither_points_nor_each_other() -> None:
    """Three points close to each other and one alone."""
    figure, (axes,) = charts._figure(1, 6.0)
    places = [(1.0, 1.0, "first"), (1.01, 1.0, "second"), (1.005, 1.02, "third"), (2.0, 2.0, "alone")]
    axes.plot(*zip(*[place[:2] for place in places], strict=True), "o")
    axes.margins(0.2)
    charts._annotate(axes, places)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
