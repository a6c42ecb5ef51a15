"""docs/models.md and the README's summary are what their command writes."""

import re
from pathlib import Path

import pytest
import timm

import attnzoo
from attnzoo.tools.main import main
from attnzoo.tools.table import models_table, with_summary

ROOT = Path(attnzoo.__file__).parent
TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def _rows(text: str) -> dict[str, str]:
    """Table rows by model, with their footnotes' numbers left out."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {row.split("`")[1]: re.sub(r"\[\^\d+\]", "[^]", row) for row in rows}


def test_every_model_has_a_row() -> None:
    assert sorted(_rows(TABLE)) == sorted(attnzoo.zoo.list_models())


@pytest.mark.parametrize(
    "pattern", ["*_nano", "overlock_xt", "flowformer", "mavit_tiny", "nat_mini", "s2aformer_mini", "van_b4"]
)
def test_the_table_is_what_the_command_writes(pattern: str) -> None:
    fresh = models_table(pattern)
    wanted = _rows(fresh)
    assert wanted
    assert {name: _rows(TABLE)[name] for name in wanted} == wanted
    assert TABLE.startswith(fresh[: fresh.index("| `")])


def test_small_models_have_multiply_adds_too() -> None:
    assert all(float(row.split("|")[4]) > 0 for row in _rows(TABLE).values())


def test_reconstructions_are_marked_as_such() -> None:
    notes = dict(re.findall(r"^\[\^(\d+)\]: (.*)$", TABLE, re.MULTILINE))
    marked = dict(re.findall(r"^\| `(\w+)`\[\^(\d+)\]", TABLE, re.MULTILINE))
    assert list(marked) == attnzoo.zoo.list_models("s2aformer_*")
    assert all(notes[number].startswith("A reconstruction") for number in marked.values())


def test_weights_that_no_tag_loads_are_not_offered() -> None:
    rows = _rows(TABLE)
    assert all(" –[^] | " in rows[name] and "share page" not in rows[name] for name in ("van_b4", "van_b5", "van_b6"))
    offered = {f"{name}.{tag}" for name, row in rows.items() for tag in re.findall(r"\| `(\w+)`(?: \(| \|)", row[3:])}
    assert offered <= set(timm.list_pretrained())


def test_the_summary_is_what_the_command_writes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_summary(readme) == readme


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--pattern", "no_such_*"]) == 2
    assert "no model matches 'no_such_*'" in capsys.readouterr().err
    assert main(["table", "--pattern", "nat_mini", "--parity", str(tmp_path / "none.json")]) == 2
    assert "make parity" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("no markers", encoding="utf-8")
    assert main(["table", "--readme", str(tmp_path / "README.md")]) == 2
    assert "lacks the lines" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--readme", "--configs", "--parity"])
def test_files_that_are_no_text(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    for path, message in ((tmp_path, "Is a directory"), (picture, "picture.png is no text")):
        assert main(["table", "--pattern", "nat_mini", option, str(path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"nat_mini": "small"}'])
def test_parity_of_another_kind(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "parity.json"
    file.write_text(text)
    assert main(["table", "--pattern", "nat_mini", "--parity", str(file)]) == 2
    assert "'make parity' writes it" in capsys.readouterr().err
