"""configs/README.md shows the configs there are."""

from pathlib import Path

import pytest
from mm_config_files import FILES, FOLDER

from attnzoo.tools.cli import UserError
from attnzoo.tools.dense.matrix import read_metadata, with_configs
from attnzoo.tools.main import main


def test_the_table_is_what_the_command_writes(tmp_path: Path) -> None:
    kept = (FOLDER / "README.md").read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(kept.replace("| nat-mini |", "| nat-maxi |"), encoding="utf-8")
    assert main(["table", "--configs", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == kept
    for path in FILES:
        assert f"({path.relative_to(FOLDER).as_posix()})" in kept


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no markers", encoding="utf-8")
    assert main(["table", "--configs", str(tmp_path / "README.md")]) == 2
    with pytest.raises(UserError, match="lacks the lines"):
        with_configs("nothing")


@pytest.mark.parametrize("text", ["model = dict()", "metadata = dict(origin=__name__)", "metadata = 1"])
def test_a_config_has_to_say_what_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="metadata"):
        read_metadata(path)
