"""The table of faults is whole: each row has a test, and the page for readers is the table with the outcomes."""

import json
from pathlib import Path

import pytest
from fault_table import FAULTS, PAGE, RESULTS, page

HERE = Path(__file__).parent


def test_each_fault_is_provoked_by_a_test():
    text = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    assert [fault.number for fault in FAULTS] == list(range(1, 45))
    assert [fault.number for fault in FAULTS if f"pytest.mark.fault({fault.number})" not in text] == []


def test_the_page_is_the_table_with_the_last_outcomes():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(results) == {str(fault.number) for fault in FAULTS}
    assert all(result["passed"] and result["tests"] for result in results.values())
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(results)
    assert sum(line.startswith(f"| {fault.number} | ") for fault in FAULTS for line in text.splitlines()) == 44


@pytest.mark.parametrize("result", [None, {"tests": 2, "passed": False, "how": ""}])
def test_a_fault_that_was_not_survived_shows(result):
    row = page({"1": result} if result else {}).splitlines()[-44]
    assert row.endswith("| – | – |" if result is None else "| 2 | **no** |")
