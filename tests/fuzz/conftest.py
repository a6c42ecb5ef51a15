"""Shares FUZZ_SECONDS among the targets and writes what a long run found."""

import datetime
import json
from pathlib import Path

import fuzzing
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fuzzing.targets = max(1, sum(hasattr(getattr(item, "function", None), "is_fuzzed") for item in items))


def pytest_sessionfinish(session: pytest.Session) -> None:
    name = session.config.getoption("--fuzz-results")
    if name and fuzzing.results:
        found = [finding for target in fuzzing.results.values() for finding in target["findings"]]
        report = {
            "date": datetime.date.today().isoformat(),
            "seconds": fuzzing.SECONDS,
            "cases": sum(target["cases"] for target in fuzzing.results.values()),
            "findings": found,
            "cases_by_target": {target: row["cases"] for target, row in sorted(fuzzing.results.items())},
        }
        file = Path(name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
