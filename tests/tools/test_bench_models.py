"""``attnzoo bench models`` over several settings: what it measures, records as failed, resumes and refuses."""

import csv
import json
from pathlib import Path

import pytest
import torch

from attnzoo.tools.benchmarks import models, sides
from attnzoo.tools.benchmarks.energy import EnergyMeter
from attnzoo.tools.benchmarks.report import read_report
from attnzoo.tools.benchmarks.timing import summarize
from attnzoo.tools.main import main

OURS, OTHER = "s2aformer_mini", "vit_tiny_patch16_224"
QUICK = ["--batch", "1", "--repeat", "1"]


def bench(*words: object) -> int:
    return main(["bench", "models", *map(str, words)])


def test_every_combination_gets_a_row_with_sides_in_turn(tmp_path: Path) -> None:
    file, table = tmp_path / "models.json", tmp_path / "models.csv"
    words = ["--img-size", "64,64x96", "--batch", "1,2", "--dtype", "float32", "--repeat", 2, "--models", OTHER]
    assert bench(OURS, *words, "--json", file, "--csv", table) == 0
    report = read_report(file)
    found = [(row["model"], row["batch"], row["img_size"], row["dtype"], row["backend"]) for row in report["rows"]]
    wanted = [(b, size) for b in (1, 2) for size in ([64, 64], [64, 96])]
    assert found == [(name, b, size, "float32", "auto") for b, size in wanted for name in (OURS, OTHER)]
    for row in report["rows"]:
        # A peer has no definitions.
        assert [side["form"] for side in row["sides"]] == ["eager", "reference"][: 1 + (row["model"] == OURS)]
        for side in row["sides"]:
            assert side["images_per_second"] == pytest.approx(row["batch"] / side["seconds"])
            assert 0 < side["latency"]["p50"] <= side["latency"]["p90"] <= side["latency"]["p99"]
            assert (side["joules_per_image"] is None) == bool(side["no_energy_because"])
            assert (side["error"] is None) == (row["model"] == OTHER) and side["peak_bytes"] > 0
            assert side["ratio"] == pytest.approx(side["seconds"] / row["sides"][0]["seconds"])
            assert side["floor_ratio"] == pytest.approx(side["seconds"] / row["floor_seconds"])
    assert report["setting"]["command"] == (
        f"attnzoo bench models {OURS} {OTHER} --img-size 64,64x96 --batch 1,2 --repeat 2"
    )
    lines = list(csv.DictReader(table.open()))
    assert [line["img_size"] for line in lines[::3]] == ["64×64", "64×96"] * 2
    assert float(lines[0]["p90"]) == report["rows"][0]["sides"][0]["latency"]["p90"]


def test_floors_count_what_a_model_cannot_do_without(tmp_path: Path) -> None:
    """Of ViT's 64 × 64 pixels: 17 tokens through twelve blocks; the products by hand, the bytes by the parameters."""
    rows = {}
    for words in ([], ["--backward"]):
        file = tmp_path / "models.json"
        assert bench(OTHER, *words, "--img-size", 64, "--batch", 2, "--repeat", 1, "--json", file) == 0
        rows[bool(words)] = read_report(file)["rows"][0]
    tokens, width, images, logits = 17, 192, 2 * 3 * 64**2, 2 * 1000
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    flops = 2 * 2 * (16 * width * 3 * 16**2 + 12 * block + 1000 * width)
    weights = rows[False]["parameters"]
    assert rows[False]["flops"] == flops and rows[True]["flops"] == 3 * flops
    assert rows[False]["bytes"] == 4 * (weights + images + logits)
    assert rows[True]["bytes"] == 4 * (3 * weights + 2 * (images + logits))


def test_definitions_are_for_small_images_and_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    assert bench(OURS, "--img-size", "64,32x2080", *QUICK, "--json", file) == 0
    assert [[side["form"] for side in row["sides"]] for row in read_report(file)["rows"]] == [
        ["eager", "reference"],
        ["eager"],
    ]
    assert bench(OURS, "--img-size", 64, "--no-reference", *QUICK, "--json", file) == 0
    report = read_report(file)
    assert [side["form"] for side in report["rows"][0]["sides"]] == ["eager"]
    assert "--no-reference" in report["setting"]["command"]
    assert bench(OURS, "--img-size", 64, "--backend", "reference", *QUICK, "--json", file) == 0
    assert [side["form"] for side in read_report(file)["rows"][0]["sides"]] == ["eager"]


def test_failures_are_recorded_and_the_rest_goes_on(tmp_path: Path, capsys) -> None:
    file, table = tmp_path / "models.json", tmp_path / "models.csv"
    # Less than one of timm's patches; ours are padded.
    assert bench(OURS, OTHER, "--img-size", "8", *QUICK, "--json", file, "--csv", table) == 3
    report = read_report(file)
    assert [row["model"] for row in report["rows"]] == [OURS]
    (failure,) = report["failed"]
    assert (failure["model"], failure["img_size"]) == (OTHER, [8, 8])
    assert "RuntimeError" in failure["reason"] and failure["reason"] in capsys.readouterr().err
    assert next(line for line in csv.DictReader(table.open()) if line["failed"])["model"] == OTHER


def test_a_wrong_model_gets_no_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sides, "TOLERANCES", {"float32": -1.0})
    file = tmp_path / "models.json"
    assert bench(OURS, "--img-size", 64, *QUICK, "--json", file) == 3
    report = read_report(file)
    assert report["rows"] == [] and "no time for it" in report["failed"][0]["reason"]


def test_resume_measures_only_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "models.json"
    assert bench(OURS, "--img-size", 64, *QUICK, "--json", file) == 0
    first = read_report(file)["rows"]
    asked = []
    measure = models.measure
    monkeypatch.setattr(
        models, "measure", lambda names, setup, args: asked.append(names) or measure(names, setup, args)
    )
    words = ["--img-size", "64,96", *QUICK, "--json", file, "--resume"]
    assert bench(OURS, *words) == 0
    report = read_report(file)
    assert report["rows"][:1] == first and [row["img_size"] for row in report["rows"]] == [[64, 64], [96, 96]]
    assert report["setting"]["resumed"] == [report["setting"]["date"]]
    assert bench(OURS, OTHER, *words) == 0
    assert asked == [[OURS], [OTHER], [OTHER]]


def test_interrupted_runs_keep_what_is_done(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "models.json"
    measure = models.measure

    def interrupted(names, setup, args):
        if setup.img_size == (96, 96):
            raise KeyboardInterrupt
        return measure(names, setup, args)

    monkeypatch.setattr(models, "measure", interrupted)
    assert bench(OURS, "--img-size", "64,96", *QUICK, "--json", file) == 130
    assert [row["img_size"] for row in read_report(file)["rows"]] == [[64, 64]]


def test_failed_rows_are_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    words = [OURS, "--img-size", 64, *QUICK, "--json", file]
    assert bench(*words) == 0
    report = json.loads(file.read_text())
    row = report["rows"].pop()
    facts = {name: row[name] for name in ("model", "device", "dtype", "backend", "batch", "img_size")}
    report["failed"] = [{**facts, "form": "eager", "reason": "MemoryError: none left"}]
    file.write_text(json.dumps(report))
    assert bench(*words, "--resume") == 0
    report = read_report(file)
    assert len(report["rows"]) == 1 and report["failed"] == []


def test_rows_of_another_machine_are_not_mixed_in(tmp_path: Path, capsys) -> None:
    file = tmp_path / "models.json"
    assert bench(OURS, "--img-size", 64, *QUICK, "--json", file) == 0
    report = json.loads(file.read_text())
    report["setting"]["device"] = "an abacus"
    file.write_text(json.dumps(report))
    assert bench(OURS, "--img-size", 64, *QUICK, "--json", file, "--resume") == 2
    assert "the file's device is an abacus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "float32,int4"], "--dtype is int4; it is one of float32"),
        (["--backend", "cuda"], "--backend is cuda; it is one of auto, torch"),
        (["--batch", "1,0"], "--batch is 0; at least 1"),
        (["--img-size", "0x32"], "--img-size is 0; at least 1"),
        (["--batch", "9" * 30], "9999; 1048576 is the most"),
        (["--img-size", "64x99999"], "--img-size is 99999; 16384 is the most"),
        (["--resume"], "--resume needs --json FILE"),
        (["--csv", "nowhere/models.csv"], "nowhere/models.csv cannot be written"),
        (["--device", "cpu,abacus"], "--device abacus: "),
        (["--models", "van_b00"], "no model is called van_b00; did you mean van_b0"),
        (["van_b0.nope"], "van_b0 has no weights with the tag nope; it has in1k"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys) -> None:
    assert bench(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--img-size", "9" * 5000], ["--img-size", "12x12x12"], ["--img-size", "a"], ["--batch", "one"]]
)
def test_what_is_no_list_is_refused_by_the_parser(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(*words)
    assert stopped.value.code == 2 and "is no list of" in capsys.readouterr().err


def test_percentiles() -> None:
    timing = summarize([(float(n), False) for n in range(100, -1, -1)])
    assert [timing.percentile(p) for p in (0, 50, 90, 99, 100)] == [0.0, 50.0, 90.0, 99.0, 100.0]
    assert summarize([(2.0, True)]).percentile(99) == 2.0


def test_energy_of_a_call(tmp_path: Path) -> None:
    """A counter that moves a joule a call and wraps at ten."""
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("10000000\n")
    counter = package / "energy_uj"
    counter.write_text("8000000\n")
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    assert meter.reason is None

    def call() -> None:
        counter.write_text(str((int(counter.read_text()) + 1_000_000) % 10_000_000))

    assert meter.joules(call, seconds=0.1) == pytest.approx(1.0)


def test_energy_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    meter = EnergyMeter(torch.device("cpu"), tmp_path)
    assert meter.joules(lambda: None, 1.0) is None and "no RAPL counters" in meter.reason
    (tmp_path / "intel-rapl:0").mkdir()
    assert "cannot be read: No such file" in EnergyMeter(torch.device("cpu"), tmp_path).reason
