"""Tables that several runs share, and results files that somebody has edited."""

import contextlib
import csv
import json
import os
import signal
from pathlib import Path

import pytest
from evaluation_data import at, evaluate, make_folder

from attnzoo.tools.evaluation import display


@pytest.fixture
def data(tmp_path):
    return make_folder(tmp_path / "data")


pytestmark = pytest.mark.usefixtures("no_signals")


def rows(file):
    """Of a table, by run, without the time."""
    with file.open(newline="") as stream:
        return {row.pop("run_id"): row for row in csv.DictReader(stream) if row.pop("finished")}


def test_partial_runs_of_one_table_do_not_mix(data, tmp_path):
    sizes, whole, file = (16, 24), tmp_path / "whole.csv", tmp_path / "table.csv"
    good = ("--model-kwargs", "nan_class=1")  # at another size, other figures
    for size in sizes:
        evaluate(data, whole, "--img-size", size, *(good if size == 24 else ()))
    for session in range(2):
        for size in sizes:
            at(1, signal.SIGINT)
            words = ("--img-size", size, *(good if size == 24 else ()), *(["--resume"] if session else []))
            assert evaluate(data, file, *words) == 130
    for size in sizes:
        evaluate(data, file, "--img-size", size, *(good if size == 24 else ()), "--resume")
    assert rows(file) == rows(whole)
    assert len({row["top1"] for row in rows(file).values()}) == 2
    assert not list(tmp_path.glob("*.partial.json"))
    for run in rows(file):
        kept, expected = (path.with_name(f"{path.name}.{run}.samples.npz") for path in (file, whole))
        assert kept.read_bytes() == expected.read_bytes()


def test_a_partial_row_is_not_lost_and_keeps_no_other_run_away(data, tmp_path, capsys):
    file = tmp_path / "table.csv"
    at(1, signal.SIGINT)
    assert evaluate(data, file) == 130
    assert evaluate(data, file) == 2
    assert "holds a partial run of 8 samples; --resume continues it" in capsys.readouterr().err
    assert evaluate(data, file, "--img-size", 24) == 0
    assert sorted(row["status"] for row in rows(file).values()) == ["complete", "partial"]
    assert evaluate(data, file, "--overwrite") == 0
    assert [row["status"] for row in rows(file).values()] == ["complete", "complete"]


def set_key(path, value):
    """An edit of a results file: sets a dotted key, or removes it where the value is None."""

    def edit(content):
        *parents, last = path.split(".")
        for name in parents:
            content = content[name]
        content.pop(last)
        if value is not None:
            content[last] = value

    return edit


def nested(levels):
    value = 0
    for _ in range(levels):
        value = {"a": value}
    return value


EDITS = {
    **{f"no {name}": set_key(name, None) for name in ("status", "identity", "state", "counts", "run", "excluded")},
    "no position": set_key("state.position", None),
    "a position of True": set_key("state.position", True),
    "a negative position": set_key("state.position", -4),
    "a batch of 0": set_key("state.batch_size", 0),
    "excluded is no list": set_key("excluded", {"a": 1}),
    "an excluded sample without an index": set_key("excluded", [{"file": "a", "reason": "b"}]),
    "published is a text": set_key("published", "a"),
    "nested": set_key("identity.settings", nested(400)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_results_are_refused(data, tmp_path, capsys, edit):
    file = tmp_path / "results.json"
    at(1, signal.SIGINT)
    evaluate(data, file)
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert evaluate(data, file, "--resume") == 2
    error = capsys.readouterr().err
    assert "is a damaged results file (" in error
    assert "--overwrite replaces it" in error
    assert error.count("\n") == 1


def test_results_nested_beyond_the_reader_are_refused(data, tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text("[" * 100_000)
    assert evaluate(data, file, "--resume") == 2
    assert "is no results file" in capsys.readouterr().err


def test_a_row_with_a_cell_too_many_is_refused_before_the_work(data, tmp_path, capsys, monkeypatch):
    file = tmp_path / "table.csv"
    evaluate(data, file)
    file.write_text(file.read_text().rstrip() + ",more\n")
    monkeypatch.setattr("attnzoo.tools.eval.Session", None)
    capsys.readouterr()
    assert evaluate(data, file) == 2
    assert f"{file} has more cells in row 1 than columns" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["many", "", "-1", "9" * 5000])
def test_a_count_that_is_no_number_is_refused(data, tmp_path, capsys, count):
    file = tmp_path / "table.csv"
    evaluate(data, file)
    head, row = file.read_text().splitlines()
    cells = row.split(",")
    cells[head.split(",").index("evaluated")] = count
    file.write_text(f"{head}\n{','.join(cells)}\n")
    capsys.readouterr()
    assert evaluate(data, file, "--resume") == 2
    error = capsys.readouterr().err
    assert "for evaluated in this run's row, no number" in error
    assert error.count("\n") == 1


@pytest.fixture
def full():
    """A stream to a device without room, which fails at the end of each line."""
    with contextlib.suppress(OSError), Path("/dev/full").open("w", buffering=1) as stream:  # closing flushes, too
        yield stream


def test_a_full_standard_output_costs_no_results(data, tmp_path, monkeypatch, full):
    monkeypatch.setattr("sys.stdout", full)
    # What becomes of the error is the command's matter, not the evaluation's.
    with contextlib.suppress(OSError):
        evaluate(data, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("stream", ["full", "closed"])
def test_a_standard_error_that_takes_nothing_does_not_end_the_run(data, tmp_path, capsys, monkeypatch, full, stream):
    (data / "notes.txt").touch()  # for a warning
    monkeypatch.setattr("sys.stderr", full if stream == "full" else None)
    assert evaluate(data, tmp_path / "results.json") == 0
    out = capsys.readouterr().out
    assert "top-1 75.000 %" in out
    assert "images/s" not in out


def test_names_that_are_no_utf8_are_evaluated_and_written(data, tmp_path, capsys):
    image = (data / "a" / "1.png").read_bytes()
    names = {b"a/bad\xff.png": image, b"b/none\xfe.png": b"", b"b/\x1b[2J.png": b"", b"note\xff.txt": b""}
    for name, content in names.items():
        (data / os.fsdecode(name)).write_bytes(content)
    file = tmp_path / "results.json"
    assert evaluate(data, file) == 3
    excluded = json.loads(file.read_text(encoding="utf-8"))["excluded"]
    assert {item["file"] for item in excluded} == {os.fsdecode(b"b/none\xfe.png"), "b/\x1b[2J.png"}
    out = capsys.readouterr().out
    assert "  b/none\\udcfe.png: empty file\n" in out
    assert "  b/\\x1b[2J.png: empty file\n" in out


def test_printable_spells_out_what_a_terminal_would_obey():
    assert display.printable("é a\n\x1b[31m\udcff") == "é a\\n\\x1b[31m\\udcff"
