"""SIGTERM and Ctrl-C: in the main thread as asked for, elsewhere left alone."""

import os
import signal
import threading

import pytest

from attnzoo.tools.signals import StopRequest, sigterm_raises, terminated


def test_the_first_signal_is_a_request_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_as_the_error_that_was_asked_for() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, sigterm_raises(terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("block", [StopRequest, lambda: sigterm_raises(KeyboardInterrupt)])
def test_another_thread_has_no_signals_to_set(block) -> None:
    errors, before = [], signal.getsignal(signal.SIGTERM)

    def run() -> None:
        try:
            with block():
                assert signal.getsignal(signal.SIGTERM) is before
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
