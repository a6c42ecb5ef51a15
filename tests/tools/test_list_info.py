"""``attnzoo list`` and ``attnzoo info``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import attnzoo
from attnzoo.tools.info import describe
from attnzoo.tools.main import main
from attnzoo.weights.sizes import PARAMETERS
from attnzoo.zoo import list_models


def printed(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_list_has_every_model_of_the_zoo_and_no_other(capsys):
    rows = json.loads(printed(capsys, "list", "--json"))
    assert [row["name"] for row in rows] == list_models()
    assert all(row["params_m"] > 0 for row in rows)


def test_list_shows_published_figures(capsys):
    (row,) = json.loads(printed(capsys, "list", "biformer_tiny", "--json"))
    assert (row["top1"], row["resolution"], row["weights"]) == (81.4, 224, ["biformer_tiny.in1k"])
    assert row["params_m"] == pytest.approx(13.1, abs=0.05)
    (nano,) = json.loads(printed(capsys, "list", "biformer_nano", "--json"))
    assert 0 < nano["params_m"] < 1
    (line,) = [line for line in printed(capsys, "list", "biformer*").splitlines() if line.startswith("biformer_tiny ")]
    assert line.split() == ["biformer_tiny", "13.14", "81.40", "224", "in1k"]


def test_list_shows_the_measured_sizes_of_the_table_of_models(capsys, monkeypatch):
    monkeypatch.setattr(timm, "create_model", None)  # a list of all takes no building
    table = Path(attnzoo.__file__).with_name("docs") / "models.md"
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    lines = [line.split() for line in printed(capsys, "list").splitlines()[1:]]
    assert {line[0]: line[1] for line in lines} == {row[1].split("`")[1]: row[3] for row in rows}


@pytest.mark.parametrize(
    "name",
    ["dinat_large_11x11", "dinat_large.shi_in22k", "overlock_base.in1k_reparam", "biformer_nano", "s2aformer_xs"],
)
def test_the_sizes_are_those_of_the_models(name):
    with torch.device("meta"):
        assert PARAMETERS[name] == sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def test_sizes_are_of_models_and_weights_that_are_there():
    assert {name for name in PARAMETERS if "." not in name} <= set(list_models())
    assert {name for name in PARAMETERS if "." in name} <= set(timm.list_pretrained())


def test_list_counts_a_model_that_has_no_recorded_size(capsys, monkeypatch):
    size = PARAMETERS["dinat_nano"]
    monkeypatch.delitem(PARAMETERS, "dinat_nano")
    assert json.loads(printed(capsys, "list", "dinat_nano", "--json"))[0]["params_m"] == size / 1e6


def test_list_sizes_weights_with_their_own_head(capsys):
    rows = json.loads(printed(capsys, "list", "dinat_large", "--pretrained", "--json"))
    assert {row["name"].partition(".")[2]: round(row["params_m"], 2) for row in rows} == {
        "shi_in22k": 232.98,
        "shi_in22k_ft_in1k": 200.94,
    }


def test_list_help_shows_no_empty_default(capsys):
    with pytest.raises(SystemExit):
        main(["list", "--help"])
    assert "default" not in capsys.readouterr().out


def test_list_pattern_is_a_glob_or_a_part(capsys):
    assert [row["name"] for row in json.loads(printed(capsys, "list", "nat_*", "--json"))] == list_models("nat_*")
    names = {row["name"] for row in json.loads(printed(capsys, "list", "isotropic", "--json"))}
    assert names == set(list_models("*isotropic*"))


def test_list_pretrained_tags(capsys):
    rows = json.loads(printed(capsys, "list", "dinat_large*", "--pretrained", "--json"))
    names = [row["name"] for row in rows]
    assert "dinat_large.shi_in22k_ft_in1k" in names
    assert all("." in name for name in names)
    (row,) = [row for row in rows if row["name"] == "dinat_large_384.shi_in22k_ft_in1k"]
    assert (row["resolution"], row["source"], row["license"]) == (384, "download", "MIT")
    assert "dinat_large.shi_in22k_ft_in1k" in printed(capsys, "list", "dinat_large*", "--pretrained")


def test_list_without_a_match(capsys):
    assert main(["list", "biformr"]) == 2
    error = capsys.readouterr().err
    assert "no model matches biformr; did you mean biformer_" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("name", "params", "flops"), [("nat_mini", 20.0, 2.7), ("dinat_tiny", 27.9, 4.3)])
def test_info_counts_agree_with_the_published(capsys, name, params, flops):
    facts = json.loads(printed(capsys, "info", name, "--json"))
    model = timm.create_model(name)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["parameters"] / 1e6 == pytest.approx(params, abs=0.06)
    assert facts["gmacs"] == pytest.approx(flops, abs=0.06)
    published = next(row for row in facts["published"] if row["task"] == "classification")
    assert (published["params_m"], published["flops_g"]) == (pytest.approx(params, abs=0.11), flops)
    features = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        shapes = [tuple(x.shape[1:]) for x in features(torch.zeros(1, 3, 64, 64))]
    sides = [64 // level["stride"] for level in facts["features"]]
    assert [(level["channels"], side, side) for level, side in zip(facts["features"], sides, strict=True)] == shapes


def test_info_counts_scaled_dot_product_attention():
    """A block's four products of the token matrix, by hand, for timm's smallest ViT."""
    facts = describe("test_vit", [160])
    tokens, dim, depth, classes = 101, 64, 6, 1000
    hidden = timm.create_model("test_vit").blocks[0].mlp.fc1.out_features
    attention = 2 * tokens * tokens * dim
    linear = tokens * dim * (4 * dim + 2 * hidden)
    patches = 100 * 3 * 16 * 16 * dim
    assert facts["gmacs"] * 1e9 == pytest.approx(depth * (attention + linear) + patches + dim * classes, abs=6e4)
    assert describe("test_vit3", [160])["gmacs"] > facts["gmacs"]


def test_info_at_another_size_and_activations(capsys):
    own = json.loads(printed(capsys, "info", "biformer_tiny", "--json"))
    larger = json.loads(
        printed(capsys, "info", "biformer_tiny.in1k", "--img-size", "256", "320", "--activations", "--json")
    )
    assert larger["img_size"] == [256, 320]
    assert larger["gmacs"] > own["gmacs"]
    assert larger["activations"] > 1e6
    assert "activations" not in own


def test_info_names_the_checkpoints(capsys):
    text = printed(capsys, "info", "nat_mini")
    assert "https://shi-labs.com/projects/nat/checkpoints/CLS/nat_mini.pth" in text
    assert "licence MIT" in text
    assert "64 /4, 128 /8, 256 /16, 512 /32" in text
    assert "torch.utils.flop_counter" in text
    assert "top1 81.8" in text


@pytest.mark.parametrize("name", ["van_b4.in1k", "flowformer.in1k"])
def test_info_says_where_a_file_without_a_name_is(capsys, name):
    text = printed(capsys, "info", name.partition(".")[0])
    assert f"{name}: share page, licence" in text
    assert "None" not in text


def test_bundled_weights_are_listed(capsys):
    (row,) = json.loads(printed(capsys, "list", "dinat_nano", "--json"))
    assert row["weights"] == ["dinat_nano.digits"]
    (weights,) = json.loads(printed(capsys, "info", "dinat_nano.digits", "--json"))["weights"]
    assert (weights["host"], weights["file"]) == ("package", "dinat_nano.digits.safetensors")
    assert "dinat_nano.digits.safetensors" in printed(capsys, "info", "dinat_nano")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["biformer_tny"], "no model is named biformer_tny; did you mean biformer_tiny"),
        (["nat_mini.shi_in2k"], "nat_mini has no weights with the tag shi_in2k"),
        (["nat_mini", "--img-size", "1", "2", "3"], "--img-size takes one or two numbers"),
        (["nat_mini", "--img-size", "0"], "--img-size takes one or two numbers of at least 1, not 0"),
        (["test_vit", "--img-size", "97"], "test_vit does not take 97x97 images"),
    ],
)
def test_info_bad_input(capsys, words, expected):
    assert main(["info", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_reader_that_leaves_is_no_error():
    words = [sys.executable, "-m", "attnzoo.tools.main", "table", "--pattern", "nat_mini"]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == ("", 141)
