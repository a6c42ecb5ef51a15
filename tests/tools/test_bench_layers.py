"""``attnzoo bench layers``: the published forms compute what ours do, alone and in blocks, and what is written."""

import pytest
import torch

import attnzoo.layers
from attnzoo.tools.benchmarks import blocks, goals, layer_cases, published_layers
from attnzoo.tools.benchmarks.report import read_report
from attnzoo.tools.main import main


def test_report_of_a_layer(tmp_path, capsys):
    file, table = tmp_path / "layers.json", tmp_path / "layers.md"
    words = ["SparsifinerAttention", "--batch", "1", "--repeat", "2", "--json", str(file), "--markdown", str(table)]
    assert main(["bench", "layers", *words]) == 0
    assert "forms differ by" in capsys.readouterr().out
    report = read_report(file)
    assert report["setting"]["command"] == "attnzoo bench layers SparsifinerAttention --batch 1 --repeat 2"
    (row,) = report["rows"]
    sides = {side["form"]: side for side in row["sides"]}
    assert sides.keys() == {"ours", "published"} and row["difference"] < 1e-12
    ((label, peer, aim, measured),) = goals.goals(report)
    assert (peer, aim, measured) == ("published", 4, sides["published"]["ratio"]) and row["case"] in label
    assert "| `SparsifinerAttention`, 197 tokens" in table.read_text()


@pytest.mark.parametrize("in_block", [False, True], ids=["layer", "block"])
@pytest.mark.parametrize("case", layer_cases.CASES, ids=lambda case: f"{case.name}-{case.label}")
def test_published_layers_compute_the_layer(case, in_block):
    module = blocks.build(case, in_block).double()
    # What begins as zero or one would hide a mistake.
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(2, *case.shape, dtype=torch.float64)
    twin = blocks.with_published(case, module)
    with torch.no_grad():
        ours, theirs = module(x), twin(x)
    assert ours.shape == x.shape
    assert (ours - theirs).norm() < 1e-12 * ours.norm()
    layer = getattr(attnzoo.layers, case.name)
    assert [any(isinstance(each, layer) for each in form.modules()) for form in (module, twin)] == [True, False]


def test_report_of_blocks(tmp_path):
    file, table = tmp_path / "blocks.json", tmp_path / "blocks.md"
    words = ["BiLevelRoutingAttention", "--block", "--batch", "1", "--repeat", "2", "--backward"]
    assert main(["bench", "layers", *words, "--json", str(file), "--markdown", str(table)]) == 0
    report = read_report(file)
    assert report["setting"]["command"] == (
        "attnzoo bench layers BiLevelRoutingAttention --block --backward --batch 1 --repeat 2"
    )
    assert "| block of | form |" in table.read_text() and goals.verdicts(report) == ""
    report["setting"].update(timer="CUDA events", backward=False)
    ratio = {side["form"]: side["ratio"] for side in report["rows"][0]["sides"]}["published"]
    assert [goal[1:] for goal in goals.block_ratios(report)][0] == ("published", 1.8, ratio)
    assert goals.verdicts(report).startswith("#### Goals for blocks with fused kernels: ")


def test_a_layer_of_another_form_gets_no_time(monkeypatch, capsys):
    monkeypatch.setattr(published_layers, "sparsifiner", lambda layer: lambda x: x)
    assert main(["bench", "layers", "SparsifinerAttention", "--batch", "1"]) == 3
    assert "the forms differ by" in capsys.readouterr().err
    assert main(["bench", "layers", "Sparsifiner"]) == 2
    assert "did you mean SparsifinerAttention" in capsys.readouterr().err


def test_a_layer_that_is_wrong_in_its_type_gets_no_time(monkeypatch, capsys):
    exact = attnzoo.layers.SparsifinerAttention.forward

    def forward(layer, x):
        out, row = exact(layer, x)
        return out if x.dtype == torch.float64 else out * 1.01, row

    monkeypatch.setattr(attnzoo.layers.SparsifinerAttention, "forward", forward)
    assert main(["bench", "layers", "SparsifinerAttention", "--batch", "1"]) == 3
    assert "ours is off by 1.0e-02; no times" in capsys.readouterr().err


def test_a_layer_that_does_not_fit_into_memory_has_no_row(monkeypatch, tmp_path, capsys):
    def fails(layer):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(published_layers, "magnitude_aware", fails)
    file = tmp_path / "layers.json"
    words = ["SparsifinerAttention", "MagnitudeAwareLinearAttention", "--batch", "1", "--repeat", "1"]
    assert main(["bench", "layers", *words, "--json", str(file)]) == 3
    assert "MagnitudeAwareLinearAttention, 28×28, 2 heads of 64: out of memory; no times" in capsys.readouterr().err
    assert [row["layer"] for row in read_report(file)["rows"]] == ["SparsifinerAttention"]
