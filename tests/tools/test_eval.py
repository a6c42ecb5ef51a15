"""``attnzoo eval`` on images whose answers are known."""

import csv
import dataclasses
import json
import shlex

import numpy as np
import pytest
import torch
from evaluation_data import CLASSES, SIZE, Probe, arguments, make_folder

from attnzoo.tools.main import main
from attnzoo.weights import manifest


def evaluate(tmp_path, data, *more):
    file = tmp_path / "results.json"
    status = main(arguments(data, "--results", file, *more))
    return status, json.loads(file.read_text())


def test_known_accuracy(tmp_path, capsys):
    status, results = evaluate(tmp_path, make_folder(tmp_path / "data", per_class=4, wrong=1))
    assert status == 0
    assert results["status"] == "complete"
    assert results["top1"] == 75.0
    assert results["top5"] == 100.0
    assert results["counts"] == {"evaluated": 20, "non_finite": 0, "excluded": 0, "seen": 20, "total": 20}
    out = capsys.readouterr().out
    assert "top-1 75.000 %" in out
    assert "of 20 images" in out


def test_loss_and_samples_agree_with_the_figures(tmp_path):
    _, results = evaluate(tmp_path, make_folder(tmp_path / "data"))
    samples = np.load(tmp_path / "results.json.samples.npz")
    assert samples["index"].tolist() == list(range(20))
    assert samples["top1"].mean() * 100 == results["top1"]
    assert samples["loss"].astype(float).mean() == results["loss"]
    levels = torch.linspace(0, 1, CLASSES)
    shown = torch.tensor([1, 0, 0, 0])  # the images of the first class, as wrongly labelled as they are
    expected = torch.nn.functional.cross_entropy(-((levels[shown][:, None] - levels) ** 2), torch.zeros(4).long())
    assert samples["loss"][:4].mean() == pytest.approx(expected.item(), abs=2e-3)


def test_results_say_how_to_repeat(tmp_path):
    data = make_folder(tmp_path / "data")
    _, results = evaluate(tmp_path, data, "--img-size", 24, 32, "--interpolation", "bilinear", "--crop-pct", 0.9)
    assert results["data_config"]["input_size"] == [3, 24, 32]
    assert results["data_config"]["interpolation"] == "bilinear"
    assert results["data_config"]["crop_pct"] == 0.9
    assert results["data"]["class_map"]["index"] == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert results["versions"]["torch"] == torch.__version__
    assert len(results["weights_sha256"]) == 64
    assert "--img-size 24 32" in results["run"]["command"]
    assert "--random-weights" in results["run"]["command"]
    assert "--exif" not in results["run"]["command"]
    assert "--help" not in results["run"]["command"]


def test_the_command_repeats_the_run(tmp_path):
    data = make_folder(tmp_path / "data")
    _, first = evaluate(tmp_path, data, "--img-size", 24, "--limit", 7, "--model-kwargs", "nan_class=3")
    assert main(shlex.split(first["run"]["command"])[1:]) == 3
    second = json.loads((tmp_path / "results.json").read_text())
    assert second.pop("run")["command"] == first.pop("run")["command"]
    assert second == first


def test_help_shows_each_default(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for default in ("(default: validation)", "(default: 64)", "(default: 0)", "(default: none)", "(default: auto)"):
        assert default in text


def test_csv_has_a_row_for_each_run(tmp_path):
    data, file = make_folder(tmp_path / "data"), tmp_path / "new" / "results.csv"
    for size in (16, 24, 16):
        assert main(arguments(data, "--results", file, "--img-size", size)) == 0
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["img_size"] for row in rows) == ["16x16", "24x24"]
    assert {row["top1"] for row in rows} == {"75.0"}
    assert not list(file.parent.glob("*.partial.json"))


def test_batch_size_workers_and_memory_format_change_nothing(tmp_path):
    data = make_folder(tmp_path / "data")
    _, plain = evaluate(tmp_path, data)
    _, other = evaluate(tmp_path, data, "--batch-size", 7, "--workers", 2, "--channels-last")
    assert other["top1"] == plain["top1"]
    assert other["loss"] == pytest.approx(plain["loss"], rel=1e-6)


def test_autocast(tmp_path):
    status, results = evaluate(tmp_path, make_folder(tmp_path / "data"), "--amp-dtype", "bfloat16")
    assert (status, results["top1"], results["settings"]["amp_dtype"]) == (0, 75.0, "bfloat16")


def test_compile(tmp_path, monkeypatch):
    compiled = torch.compile
    calls = []

    def traced(model):
        calls.append(model)
        return compiled(model, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    status, results = evaluate(tmp_path, make_folder(tmp_path / "data"), "--compile")
    assert (status, results["top1"], len(calls)) == (0, 75.0, 1)


@pytest.mark.parametrize(
    ("file", "resolution", "expected"),
    [("probe.pth", SIZE, []), ("other.pth", SIZE, ["another file"]), ("probe.pth", 224, ["published at 224 pixels"])],
)
def test_published_accuracy_stands_beside(tmp_path, capsys, monkeypatch, file, resolution, expected):
    entry = dataclasses.replace(
        manifest.entries()[0], model="test_probe.in5", file=file, metrics={"top1": 74.5}, resolution=resolution,
        dataset="five colours",
    )  # fmt: skip
    monkeypatch.setattr(manifest, "entries", lambda: (entry,))
    torch.save(Probe().state_dict(), tmp_path / "probe.pth")
    words = [word for word in arguments(make_folder(tmp_path / "data")) if word != "--random-weights"]
    words += ["--checkpoint", str(tmp_path / "probe.pth"), "--results", str(tmp_path / "r.json")]
    assert main(words) == 0
    published = json.loads((tmp_path / "r.json").read_text())["published"]
    assert (published["top1"], published["difference"]) == (74.5, 0.5)
    assert len(published["not_comparable"]) == len(expected)
    assert all(part in why for part, why in zip(expected, published["not_comparable"], strict=True))
    assert "published top-1 74.50 %, difference +0.500" in capsys.readouterr().out


def test_fewer_images_than_published_are_not_comparable(tmp_path, monkeypatch):
    imagenet = next(entry for entry in manifest.entries() if entry.model == "biformer_tiny.in1k")
    entry = dataclasses.replace(imagenet, model="test_probe.in1k", file="probe.pth", resolution=SIZE)
    monkeypatch.setattr(manifest, "entries", lambda: (entry,))
    torch.save(Probe().state_dict(), tmp_path / "probe.pth")
    words = [word for word in arguments(make_folder(tmp_path / "data")) if word != "--random-weights"]
    words += ["--checkpoint", str(tmp_path / "probe.pth"), "--results", str(tmp_path / "r.json"), "--limit", "9"]
    assert main(words) == 0
    published = json.loads((tmp_path / "r.json").read_text())["published"]
    assert published["not_comparable"] == [
        "not all images were evaluated",
        "20 images, ImageNet-1K validation has 50,000",
    ]


def test_limit_draws_the_same_samples_each_time(tmp_path):
    data = make_folder(tmp_path / "data")
    drawn = []
    for seed in (0, 0, 1):
        _, results = evaluate(tmp_path, data, "--limit", 9, "--seed", seed)
        assert results["counts"]["evaluated"] == 9
        drawn.append(np.load(tmp_path / "results.json.samples.npz")["index"].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_channel(tmp_path):
    status, results = evaluate(tmp_path, make_folder(tmp_path / "data"), "--model-kwargs", "in_chans=1")
    assert (status, results["top1"], results["data_config"]["input_size"]) == (0, 75.0, [1, 16, 16])


def test_nan_logits_never_score(tmp_path, capsys):
    data = make_folder(tmp_path / "data", wrong=0)
    status, results = evaluate(tmp_path, data, "--model-kwargs", "nan_class=0")
    assert status == 3
    assert results["counts"]["non_finite"] == 4
    assert results["top1"] == results["top5"] == 80.0
    assert results["non_finite"] == [f"a/{number}.png" for number in range(4)]
    assert "4 images gave NaN" in capsys.readouterr().out


def test_a_real_model_and_its_checkpoint(tmp_path):
    import timm

    data = make_folder(tmp_path / "data", per_class=1)
    torch.manual_seed(3)
    model = timm.create_model("test_vit", num_classes=CLASSES, img_size=32)
    torch.save({"epoch": 1, "state_dict": {}, "state_dict_ema": model.state_dict()}, tmp_path / "model.pth")
    words = ["eval", "test_vit", "--data", str(data), "--img-size", "32", "--model-kwargs", "img_size=32"]
    words += ["--num-classes", str(CLASSES), "--workers", "0", "--device", "cpu"]
    words += ["--checkpoint", str(tmp_path / "model.pth"), "--checkpoint-key", "state_dict_ema"]
    assert main([*words, "--results", str(tmp_path / "r.json")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["weights"]["source"] == "checkpoint"
    assert len(results["weights"]["sha256"]) == 64
    assert results["counts"]["evaluated"] == CLASSES


def test_nan_weights_are_refused(tmp_path, capsys):
    state = Probe().state_dict()
    state["levels"][2] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    words = [word for word in arguments(make_folder(tmp_path / "data")) if word != "--random-weights"]
    assert main([*words, "--checkpoint", str(tmp_path / "nan.pth")]) == 2
    error = capsys.readouterr().err
    assert "NaN" in error
    assert "levels" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--img-size", "1", "2", "3"], "one or two numbers"),
        (["--std", "0", "1", "1"], "must be above 0"),
        (["--std", "nan", "1", "1"], "must be above 0"),
        (["--std", "58.395", "57.12", "57.375"], "--std 58.395 must be above 0 and at most 1: divide by 255"),
        (["--mean", "123.675", "116.28", "103.53"], "--mean 123.675 is not of 0 to 1"),
        (["--mean", "0.5", "0.5"], "1 or 3 numbers"),
        (["--resume"], "--resume needs --results"),
        (["--checkpoint-key", "ema"], "needs --checkpoint"),
        (["--model-kwargs", "only_size=12"], "does not take 16x16 images: side 16 is not 12"),
        (["--model-kwargs", "in_chans=4"], "1 or 3 channels"),
        (["--device", "warp"], "device warp cannot be used"),
        (["--model-kwargs", "in_chans=0"], "test_probe does not take {'in_chans': 0}: no channels"),
        (["--model-kwargs", "a=" + "(" * 3000], "does not take {'a': '(((("),
        (["--model-kwargs", "num_classes=5"], "--model-kwargs takes arguments of the model, and num_classes is none"),
        (["--model-kwargs", "checkpoint_path=/etc/passwd"], "and checkpoint_path is none; use --checkpoint FILE"),
        (["--model-kwargs", "pretrained=True"], "and pretrained is none"),
        (["--model-kwargs", "pretrained_cfg=1"], "and pretrained_cfg is none"),
        (["--model-kwargs", "pretrained_cfg_overlay={'file':'x'}"], "and pretrained_cfg_overlay is none"),
        (["--model-kwargs", "pretrained_strict=False"], "and pretrained_strict is none"),
        (["--model-kwargs", "features_only=True"], "and features_only is none"),
        (["--model-kwargs", "cache_dir=5"], "and cache_dir is none"),
        (["--device", "hpu"], "device hpu cannot be used"),
        (["--device", "privateuseone"], "device privateuseone cannot be used"),
        (["--device", "meta"], "device meta cannot be used"),
    ],
)
def test_bad_options_give_one_line(tmp_path, capsys, words, expected):
    data = make_folder(tmp_path / "data", per_class=1)
    assert main(arguments(data, *words)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--batch-size", "0"], ["--workers", "-1"], ["--workers", "257"], ["--crop-pct", "2"], ["--limit", "x"]]
)
def test_bad_numbers_are_refused_when_parsed(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as error:
        main(arguments(tmp_path, *words))
    assert error.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("dinat_mimi", "no model is named dinat_mimi; did you mean dinat_mini"),
        ("test_vit.r160_in2k", "did you mean r160_in1k"),
        ("test_probe", "no published weights"),
    ],
)
def test_models_without_weights(tmp_path, capsys, model, expected):
    assert main(["eval", model, "--data", str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err


def test_a_trained_classifier_is_not_replaced(tmp_path, capsys):
    assert main(["eval", "test_vit", "--data", str(tmp_path), "--num-classes", "5"]) == 2
    assert "would replace the trained classifier of 1000" in capsys.readouterr().err
