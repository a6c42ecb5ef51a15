"""Fifty writers at once: no row is lost, no file is half written, and the process keeps its umask."""

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attnzoo.tools.evaluation.results import ResultsFile
from attnzoo.weights.files import replace_file

WRITERS = 50


def _results(i: int) -> dict[str, Any]:
    return {
        **dict(model="m", status="complete", top1=1.0, top5=1.0, loss=0.0, run_id=f"run{i}", weights_sha256=""),
        "counts": dict(evaluated=i, excluded=0, non_finite=0, total=i),
        "published": None,
        "data_config": dict(input_size=(3, 8, 8), crop_pct=1.0, interpolation="bicubic"),
        "settings": dict(amp_dtype="none", device="cpu"),
        "run": dict(finished="now"),
    }


def test_fifty_evaluations_into_one_table(tmp_path: Path) -> None:
    def run(i: int) -> None:
        ResultsFile(tmp_path / "all.csv").write(_results(i), b"samples")

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(run, range(WRITERS)))
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = {row["run_id"]: int(row["evaluated"]) for row in csv.DictReader(file)}
    assert rows == {f"run{i}": i for i in range(WRITERS)}
    samples = {f"all.csv.run{i}.samples.npz" for i in range(WRITERS)}
    assert {path.name for path in tmp_path.iterdir()} == {"all.csv"} | samples


def test_fifty_writers_of_one_file_keep_it_whole_and_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda i: replace_file(tmp_path / "file", bytes([i]) * 5000), range(WRITERS)))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    content = (tmp_path / "file").read_bytes()
    assert len(content) == 5000 and len(set(content)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
