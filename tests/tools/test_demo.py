"""The demo at a small scale: its table, its picture and its exit status."""

import pytest
import torch
from PIL import Image

from attnzoo.tools import main
from attnzoo.tools.cli import EXIT_INCOMPLETE
from attnzoo.tools.training.picture import Judged, choose_samples, judge


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_bundled_model_reads_the_held_out_digits():
    one = judge("dinat_nano.digits", None, "bundled")
    assert one.total == 360
    assert one.top1 >= 98.3
    assert one.parameters < 1_000_000


def test_demo_trains_judges_both_and_draws(tmp_path, capsys):
    out = tmp_path / "demo"
    # One epoch has no room for the recipe's warm-up.
    command = ["demo", "--output", str(out), "--epochs", "1", "--limit", "64", "--threads", "1"]
    assert main.main(command) == EXIT_INCOMPLETE
    text = capsys.readouterr().out
    assert "from nothing: 1 epoch\n" in text
    assert "biformer_nano" in text and "dinat_nano.digits" in text and "/ 360" in text
    assert "below 98 %: biformer_nano" in text
    with Image.open(out / "demo.png") as picture:
        assert picture.size[0] > 1000
        assert len(set(picture.convert("L").getdata())) > 50
    assert main.main(command) == EXIT_INCOMPLETE, "a second run must not be refused"


def test_mistakes_are_shown_first_and_at_most_half():
    targets = [0] * 100
    few = Judged("a", "", 1, [0] * 50 + [1] + [0] * 49, targets)
    shown = choose_samples([few], 24)
    assert 50 in shown
    assert len(set(shown)) == 24
    many = Judged("a", "", 1, [1] * 90 + [0] * 10, targets)
    shown = choose_samples([many], 24)
    assert len(set(shown)) == 24
    assert sum(many.predictions[i] != 0 for i in shown) >= 12


def test_nonsense_threads_are_refused(capsys):
    assert main.main(["demo", "--threads", "0"]) == 2
    assert "--threads is 0" in capsys.readouterr().err
