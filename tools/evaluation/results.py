"""The results file: refused before the work when it cannot be written, and never half written."""

import csv
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from ..cli import UserError
from ..files import alone_in, write_atomic

FORMAT = "attnzoo-eval/1"

_COLUMNS = (
    "model", "status", "top1", "top5", "loss", "evaluated", "excluded", "non_finite", "total", "published_top1",
    "difference", "img_size", "crop_pct", "interpolation", "amp_dtype", "device", "weights_sha256", "run_id",
    "finished",
)  # fmt: skip


class ResultsFile:
    """``FILE.json``, or a row of ``FILE.csv`` with the state of a partial run in ``FILE.csv.partial.json``.

    The scores of each sample lie beside it in ``FILE.json.samples.npz``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_csv = self.path.suffix == ".csv"
        self.state_path = self.path.with_name(self.path.name + ".partial.json") if self.is_csv else self.path
        self.samples_path = self.path.with_name(self.path.name + ".samples.npz")

    def check(self, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Makes sure that the file can be written, and reads the run it holds if that is to be resumed.

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
        if self.is_csv and self.path.exists():
            self._rows()
        state = self._read_state() if self.state_path.exists() and not overwrite else None
        if state and state["status"] == "partial" and not resume:
            done = state["state"]["position"]
            raise UserError(
                f"{self.path} holds a partial run of {done} samples; --resume continues it, --overwrite starts again"
            )
        return state if resume else None

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.state_path} is no results file ({error}); --overwrite replaces it") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UserError(f"{self.state_path} is no results file of attnzoo eval; --overwrite replaces it")
        return state

    def write(self, results: dict[str, Any], samples: bytes) -> None:
        """Writes results and samples; the samples first, so that they are never behind.

        Raises:
            UserError: The disk is full or the folder has gone; what was there before is still there.
        """
        write_atomic(self.samples_path, samples)
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if not self.is_csv:
            write_atomic(self.path, text.encode())
            return
        if results["status"] == "partial":
            write_atomic(self.state_path, text.encode())
        with alone_in(self.path.parent):  # other runs may write rows of theirs to the same file
            self._write_row(results)
        if results["status"] == "complete":
            self.state_path.unlink(missing_ok=True)

    def _rows(self) -> list[dict[str, str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.path} is no CSV file: {error}") from None
        if reader.fieldnames is not None and tuple(reader.fieldnames) != _COLUMNS:
            raise UserError(f"{self.path} has other columns than attnzoo eval writes; give another name")
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
                return {name: int(row[name]) for name in ("evaluated", "excluded", "non_finite", "total")}
        return None


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
