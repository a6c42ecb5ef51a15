"""Every ``attnzoo`` command that the README and docs/ tell to type is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from attnzoo.tools.main import build_parser

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "configs/README.md", *sorted(ROOT.glob("docs/*.md"))]
# In an indented or fenced block, perhaps behind variables; options may go on behind a backslash.
COMMAND = re.compile(r"^(?: {4})?(?:\w+=\S+ )*attnzoo (.*)$", re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    texts = {file: file.read_text(encoding="utf-8").replace("\\\n", " ") for file in FILES}
    return [(file.name, command) for file, text in texts.items() for command in COMMAND.findall(text)]


def words_of(command: str) -> list[str]:
    """Up to a comment, or to where the shell's own part begins."""
    words = shlex.split(command, comments=True)
    return words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))]


@pytest.mark.parametrize(("file", "command"), documented(), ids=str)
def test_is_understood(file: str, command: str) -> None:
    words = words_of(command)
    build_parser(words[0]).parse_args(words)


def test_there_are_some() -> None:
    assert len(documented()) > 30
