"""Every fault of tests/fault_table.py is provoked for real by a test marked ``fault(number)``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import make_entry, names, server

from attnzoo.tools.main import main

__all__ = ["server"]

_OUTCOMES = pytest.StashKey[dict[int, dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(number): provokes this fault of tests/fault_table.py")
    config.stash[_OUTCOMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[Any]:
    report = yield
    for mark in item.iter_markers("fault"):
        if report.when == "call" or report.failed:
            outcome = item.config.stash[_OUTCOMES].setdefault(mark.args[0], {"tests": 0, "passed": True, "how": ""})
            outcome["tests"] += 1
            outcome["passed"] &= report.passed
            outcome["how"] = dict(report.user_properties).get("how", outcome["how"])
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    outcomes = session.config.stash.get(_OUTCOMES, {})
    if (name := session.config.getoption("--faults-results")) and outcomes:
        file = Path(name)
        file.parent.mkdir(exist_ok=True)
        rows = {str(number): outcomes[number] for number in sorted(outcomes)}
        file.write_text(json.dumps(rows, indent=1) + "\n")


@pytest.fixture
def attnzoo(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process; gives exit status, output and error text."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def refused(attnzoo: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """The command ends with status 2, says one line and prints no result; gives the line."""

    def run(*words: object) -> str:
        status, out, err = attnzoo(*words)
        assert (status, out) == (2, ""), err
        assert err.startswith(f"attnzoo {words[0]}: ")
        assert err.count("\n") == 1, err
        return err

    return run


@pytest.fixture(name="make_entry")
def make_entry_fixture() -> Callable[..., Any]:
    return make_entry


@pytest.fixture(name="names")
def names_fixture() -> Callable[[Path], set[str]]:
    return names
