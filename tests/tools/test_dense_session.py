"""What is wrong with a config is one line; what is wrong with attnzoo keeps its traceback."""

import pytest

from attnzoo.tools.cli import UserError
from attnzoo.tools.dense import session


def test_a_config_that_cannot_be_built() -> None:
    with pytest.raises(UserError, match="the config cannot be built: .no such type."), session.one_line_errors():
        raise KeyError("no such type")


@pytest.mark.parametrize("error", [AttributeError, AssertionError, KeyError])
def test_a_fault_of_ours(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_PACKAGE", __name__.split(".")[0])
    with pytest.raises(error), session.one_line_errors():
        raise error


def test_a_value_that_our_checks_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_PACKAGE", __name__.split(".")[0])
    with pytest.raises(UserError, match="depths=0"), session.one_line_errors():
        raise ValueError("depths=0: a whole number from 1 on is needed")
