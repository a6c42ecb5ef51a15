"""The fuzzer finds what it should: a failure, and a refusal that does not say what it refuses."""

from collections.abc import Callable

import fuzzing
import pytest
from fuzzing import accepted, fuzzed
from hypothesis import strategies as st


def _refuse(text: str) -> None:
    raise ValueError(text)


@fuzzed(50)
def _fails_above_nine(draw: Callable) -> None:
    if draw(st.integers(0, 20)) > 9:
        raise ZeroDivisionError("ten")


def test_a_refusal_names_the_argument() -> None:
    assert accepted(lambda: 3, ["topk"]) == 3
    assert accepted(lambda: _refuse("topk=0: a whole number from 1 on is needed"), ["topk"]) is None
    for text in ("topks=0 is bad", "bad value", "my_topk"):
        with pytest.raises(AssertionError, match="names none of topk"):
            accepted(lambda text=text: _refuse(text), ["topk"])
    with pytest.raises(IndexError):
        accepted(lambda: [][0], ["topk"])


def test_the_short_run_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 0)
    with pytest.raises(ZeroDivisionError):
        _fails_above_nine()


def test_the_long_run_counts_cases_and_keeps_one_finding_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 1.0)
    monkeypatch.setattr(fuzzing, "targets", 1)
    monkeypatch.setattr(fuzzing, "results", {})
    with pytest.raises(AssertionError, match="ZeroDivisionError test_harness.py"):
        _fails_above_nine()
    (row,) = fuzzing.results.values()
    assert row["cases"] > 10
    assert len(row["findings"]) == 1 and "drawn: [" in row["findings"][0]
