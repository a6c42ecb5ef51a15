"""The results file: refused before the work when it cannot be written, and never half written."""

import csv
import io
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

from ..cli import UserError
from ..files import alone_in, write_atomic
from .shape import misfit

FORMAT = "attnzoo-eval/1"

_COLUMNS = (
    "model", "status", "top1", "top5", "loss", "evaluated", "excluded", "non_finite", "total", "published_top1",
    "difference", "img_size", "crop_pct", "interpolation", "amp_dtype", "device", "weights_sha256", "run_id",
    "finished",
)  # fmt: skip


# What a run is resumed from, and what is printed of a finished one.
_SCORE = (int, float, type(None))
_SHAPE = {
    "status": str,
    "model": str,
    "top1": _SCORE,
    "top5": _SCORE,
    "loss": _SCORE,
    "published": ({"top1": (int, float), "difference": _SCORE, "not_comparable": [str]}, type(None)),
    "counts": dict.fromkeys(("evaluated", "excluded", "non_finite", "seen", "total"), int),
    "excluded": [{"index": int, "file": str, "reason": str}],
    "conversions": {str: {"count": int, "files": [str]}},
    "events": [str],
    "data": {"where": str, "split": str},
    "weights": dict,
    "identity": dict,
    "state": {"position": int, "batch_size": int},
    "run": {"sessions": int, "seconds": (int, float)},
}


class ResultsFile:
    """``FILE.json``, or a row of ``FILE.csv`` with the state of a partial run in ``FILE.csv.RUN.partial.json``.

    The scores of each sample lie beside it in ``FILE.json.samples.npz`` or ``FILE.csv.RUN.samples.npz``. RUN is the
    run's id: several runs may have rows in one table, at the same time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_csv = self.path.suffix == ".csv"

    def samples_path(self, run_id: str) -> Path:
        """Of the scores of a run."""
        return self.path.with_name(f"{self.path.name}{f'.{run_id}' if self.is_csv else ''}.samples.npz")

    def state_path(self, run_id: str) -> Path:
        """Of the results of a run that has not ended."""
        return self.path.with_name(f"{self.path.name}.{run_id}.partial.json") if self.is_csv else self.path

    def check(self, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Makes sure that the file can be written, and reads the run it holds if that is to be resumed.

        Which run of a table is meant is known later: see :meth:`partial_row`.

        Raises:
            UserError: Wrong suffix, not writable, not a results file, or a partial run that would be lost.
        """
        if self.path.suffix not in (".json", ".csv"):
            raise UserError(f"results file {self.path} must end in .json or .csv")
        if self.path.is_dir():
            raise UserError(f"results file {self.path} is a folder")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent):
                pass
            if self.path.exists():
                with self.path.open("ab"):
                    pass
        except OSError as error:
            raise UserError(f"results file {self.path} cannot be written: {error.strerror}") from None
        if not self.is_csv:
            return self._previous(self.path, resume, overwrite)
        if self.path.exists():
            self._rows()
        return None

    def partial_row(self, run_id: str, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """The results so far of a run in a table, if they are to be resumed.

        Raises:
            UserError: They are damaged, or would be lost.
        """
        return self._previous(self.state_path(run_id), resume, overwrite) if self.is_csv else None

    def _previous(self, path: Path, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        state = _read_state(path) if path.exists() and not overwrite else None
        if state and state["status"] == "partial" and not resume:
            done = state["state"]["position"]
            raise UserError(
                f"{self.path} holds a partial run of {done} samples; --resume continues it, --overwrite starts again"
            )
        return state if resume else None

    def write(self, results: dict[str, Any], samples: bytes) -> None:
        """Writes results and samples; the samples first, so that they are never behind.

        Raises:
            UserError: The disk is full or the folder has gone; what was there before is still there.
        """
        run_id = results["run_id"]
        write_atomic(self.samples_path(run_id), samples)
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # Names of files that are no UTF-8 come as lone surrogates; escaped so, JSON has them too.
        content = text.encode("utf-8", "backslashreplace")
        if not self.is_csv:
            write_atomic(self.path, content)
            return
        if results["status"] == "partial":
            write_atomic(self.state_path(run_id), content)
        with alone_in(self.path.parent):  # other runs may write rows of theirs to the same file
            self._write_row(results)
        if results["status"] == "complete":
            self.state_path(run_id).unlink(missing_ok=True)

    def _rows(self) -> list[dict[str, str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.path} is no CSV file: {error}") from None
        if reader.fieldnames is not None and tuple(reader.fieldnames) != _COLUMNS:
            raise UserError(f"{self.path} has other columns than attnzoo eval writes; give another name")
        long = next((number for number, row in enumerate(rows, 1) if None in row), None)
        if long is not None:
            raise UserError(f"{self.path} has more cells in row {long} than columns; mend it or give another name")
        return rows

    def _write_row(self, results: dict[str, Any]) -> None:
        rows = self._rows() if self.path.exists() else []
        row = _flatten(results)
        rows = [old for old in rows if old["run_id"] != row["run_id"]] + [row]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())

    def finished_counts(self, run_id: str) -> dict[str, int] | None:
        """The counts of the run's row, if the CSV has a complete one."""
        rows = self._rows() if self.is_csv and self.path.exists() else []
        for row in rows:
            if row["run_id"] == run_id and row["status"] == "complete":
                return self._counts(row)
        return None

    def _counts(self, row: dict[str, str]) -> dict[str, int]:
        counts = {name: row[name] for name in ("evaluated", "excluded", "non_finite", "total")}
        for name, text in counts.items():
            if not re.fullmatch("[0-9]{1,18}", text or ""):
                raise UserError(
                    f"{self.path} has {text!r} for {name} in this run's row, no number; --overwrite evaluates again"
                )
        return {name: int(text) for name, text in counts.items()}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no results file ({error}); --overwrite replaces it") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no results file of attnzoo eval; --overwrite replaces it")
    problem = misfit(state, _SHAPE) or (None if state["state"]["batch_size"] else "state.batch_size is 0")
    if problem:
        raise UserError(f"{path} is a damaged results file ({problem}); --overwrite replaces it")
    return state


def _flatten(results: dict[str, Any]) -> dict[str, Any]:
    config = results["data_config"]
    published = results["published"] or {}
    return {
        **{name: results[name] for name in ("model", "status", "top1", "top5", "loss", "run_id")},
        **{name: results["counts"][name] for name in ("evaluated", "excluded", "non_finite", "total")},
        "published_top1": published.get("top1"),
        "difference": published.get("difference"),
        "img_size": "x".join(str(side) for side in config["input_size"][1:]),
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        "amp_dtype": results["settings"]["amp_dtype"],
        "device": results["settings"]["device"],
        "weights_sha256": results["weights_sha256"],
        "finished": results["run"]["finished"],
    }


def plain(value: Any) -> Any:
    """The value as JSON has it: tuples as lists, and None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
