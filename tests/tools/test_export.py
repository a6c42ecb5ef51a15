"""``attnzoo export``: what is written, what is checked before it gets its name, and what is refused."""

import json
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from attnzoo.tools.data.digits import digits_dataset
from attnzoo.tools.exporting import check, formats, job, sweep
from attnzoo.tools.exporting.program import FeatureMaps, NotDynamic, open_sizes, other_size, trace
from attnzoo.tools.main import main

# timm's own toy models, for what does not depend on the zoo's layers.
VIT, CONVNEXT = "test_vit", "test_convnext"


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def digits(count: int) -> tuple[torch.Tensor, list[int]]:
    """Held-out images as the bundled model was trained on them, and their labels."""
    data = digits_dataset("validation")
    pixels = np.stack([np.asarray(data[i][0], dtype=np.float32) / 255 for i in range(count)])
    cfg = timm.get_pretrained_cfg("dinat_nano.digits")
    normalized = (pixels - np.array(cfg.mean, np.float32)) / np.array(cfg.std, np.float32)
    return torch.from_numpy(normalized).permute(0, 3, 1, 2).contiguous(), data.targets[:count]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The bundled weights as ONNX."""
    path = tmp_path_factory.mktemp("export") / "digits.onnx"
    assert export("dinat_nano.digits", "--output", path) == 0
    return path


def test_the_file_recognises_digits_as_the_model_does(exported: Path) -> None:
    images, labels = digits(60)
    (logits,) = session(exported).run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        truth = timm.create_model("dinat_nano", pretrained=True).eval()(images)
    assert check.difference([torch.from_numpy(logits)], [truth]) < 1e-5
    assert (logits.argmax(1) == labels).mean() > 0.9


def test_the_file_says_how_to_use_it(exported: Path) -> None:
    facts = session(exported).get_modelmeta().custom_metadata_map
    cfg = timm.get_pretrained_cfg("dinat_nano.digits")
    assert facts["model"] == "dinat_nano.digits" and facts["weights"] == "pretrained"
    assert json.loads(facts["input_size"]) == [3, 32, 32] and json.loads(facts["num_classes"]) == 10
    assert json.loads(facts["mean"]) == list(cfg.mean) and json.loads(facts["std"]) == list(cfg.std)
    assert len(facts["weights_sha256"]) == 64
    assert [entry.version for entry in onnx.load(str(exported)).opset_import if not entry.domain] == [20]
    assert list(exported.parent.iterdir()) == [exported]


def test_eight_bit_weights(exported: Path, tmp_path: Path, capsys) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(20):
        digits_dataset("validation")[i][0].save(photographs / f"{i}.png")
    path = tmp_path / "small.onnx"
    assert export("dinat_nano.digits", "--quantize", "int8", "--images", photographs, "--output", path) == 0
    printed = capsys.readouterr().out
    same = int(printed.partition("first choice on ")[2].split()[0])
    assert same >= 18 and "of 20 photographs" in printed
    assert path.stat().st_size < 0.6 * exported.stat().st_size
    images, labels = digits(60)
    assert (session(path).run(None, {"images": images.numpy()})[0].argmax(1) == labels).mean() > 0.9


def test_photographs_of_scikit_image(tmp_path: Path, capsys) -> None:
    path = tmp_path / "vit.onnx"
    assert export(VIT, "--random-weights", "--quantize", "int8", "--output", path) == 0
    printed = capsys.readouterr().out
    assert "of 35 photographs" in printed and "the weights are random" in printed


def test_pt2(tmp_path: Path) -> None:
    path = tmp_path / "digits.pt2"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Converting a tensor with requires_grad")
        assert export("dinat_nano.digits", "--format", "pt2", "--output", path) == 0
    images, _ = digits(5)
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    with torch.no_grad():
        truth = timm.create_model("dinat_nano", pretrained=True).eval()(images)
    torch.testing.assert_close(program(images), truth, rtol=1e-4, atol=1e-5)
    assert not formats.open_file(path)(images)[0].requires_grad
    assert json.loads(extra["metadata.json"])["model"] == "dinat_nano.digits"


def test_feature_maps(tmp_path: Path) -> None:
    path = tmp_path / "maps.onnx"
    assert export("dinat_nano.digits", "--features-only", "--img-size", 64, 32, "--output", path) == 0
    images = torch.randn(4, 3, 64, 32)
    model = timm.create_model("dinat_nano", pretrained=True).eval()
    with torch.no_grad():
        truth = model.forward_intermediates(images, intermediates_only=True)
    found = session(path).run([f"map{i}" for i in range(len(truth))], {"images": images.numpy()})
    assert check.difference([torch.from_numpy(x) for x in found], truth) < 1e-5


def test_feature_maps_of_hiera_whose_second_argument_is_a_mask() -> None:
    model = FeatureMaps(timm.create_model("hiera_tiny_224", img_size=64), "hiera_tiny_224")
    assert [x.shape[1] for x in model(torch.randn(1, 3, 64, 64))] == [96, 192, 384, 768]


@pytest.mark.parametrize("name", [CONVNEXT, "van_b0"])
def test_any_size_where_the_architecture_allows_it(name: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "any.onnx"
    size = ("--img-size", 160)
    assert export(name, "--random-weights", "--dynamic-size", *size, "--output", path) == 0
    printed = capsys.readouterr().out
    assert all(f"batch 3, {size}: " in printed for size in ("256×224", "205×219", "96×128"))
    assert session(path).run(None, {"images": np.zeros((1, 3, 64, 224), np.float32)})[0].shape == (1, 1000)
    assert session(path).get_inputs()[0].shape == ["batch", 3, "height", "width"]


@pytest.mark.parametrize(
    "words",
    [
        ["dinat_nano.digits"],  # its windows are as large as the map
        ["dinat_nano.digits", "--format", "pt2"],
        ["biformer_nano", "--random-weights", "--img-size", 64],  # at multiples of 32 alone
        ["vit_tiny_patch16_224", "--random-weights"],
    ],
)
def test_a_fixed_size_where_it_does_not(words: list, tmp_path: Path, capsys) -> None:
    path = tmp_path / ("fixed.pt2" if "pt2" in words else "fixed.onnx")
    assert export(*words, "--dynamic-size", "--output", path) == 0
    printed = capsys.readouterr().out
    assert f"{words[0]} is made for one image size at a time, " in printed and " here: " in printed
    assert "batch 3, " in printed and path.exists()
    if path.suffix == ".onnx":
        batch, channels, *size = session(path).get_inputs()[0].shape
        assert (batch, channels) == ("batch", 3) and all(isinstance(side, int) for side in size)


def test_tracing_an_open_size_ends_in_time(monkeypatch) -> None:
    from attnzoo.tools.exporting import program

    monkeypatch.setattr(program, "_DYNAMIC_SIZE_SECONDS", 0.05)
    with pytest.raises(NotDynamic, match="found no program in"):
        trace(timm.create_model(CONVNEXT).eval(), torch.randn(2, 3, 160, 160), dynamic_size=True)


def test_an_end_that_was_swallowed_comes_again(monkeypatch) -> None:
    from attnzoo.tools.exporting import program

    monkeypatch.setattr(program, "_AGAIN_SECONDS", 0.05)
    swallowed = []
    with pytest.raises(program._TimeIsUpError), program._time_limit(0.05):
        while True:
            try:
                while True:
                    pass
            except BaseException as error:
                swallowed.append(error)
                if len(swallowed) > 1:
                    raise
    assert len(swallowed) == 2


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    assert export(VIT, "--random-weights", "--no-dynamic-batch", "--opset", 18, "--output", path) == 0
    assert session(path).get_inputs()[0].shape == [2, 3, 160, 160]
    assert onnx.load(str(path)).opset_import[0].version == 18


def test_weights_of_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model(VIT, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    path = tmp_path / "vit.pt2"
    words = ["--checkpoint", tmp_path / "weights.pt", "--num-classes", 7, "--format", "pt2"]
    assert export(VIT, *words, "--output", path) == 0
    images = torch.randn(3, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(path).module()(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_file_that_differs_gets_another_name(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    path = tmp_path / "vit.pt2"
    path.write_bytes(b"an older one")
    assert export(VIT, "--random-weights", "--format", "pt2", "--output", path) == 3
    assert path.read_bytes() == b"an older one"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["vit.pt2", "vit.rejected.pt2"]
    assert "vit.rejected.pt2, for inspection only" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (formats.UserError("no"), 2)])
def test_nothing_is_left_of_a_failed_export(error, status: int, tmp_path: Path, monkeypatch) -> None:
    def write(program, path, *rest):
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(job, "write", write)
    assert export(VIT, "--random-weights", "--format", "pt2", "--output", tmp_path / "vit.pt2") == status
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch, capsys) -> None:
    """As /proc, whose permissions do not say so."""

    def refuse(**_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(job.tempfile, "mkstemp", refuse)
    assert export(VIT, "--random-weights", "--output", tmp_path / "x.onnx") == 2
    error = capsys.readouterr().err
    assert "x.onnx cannot be written: name a file in a folder" in error and error.count("\n") == 1


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)), job.temporary(tmp_path / "a.onnx"):
        signal.raise_signal(signal.SIGTERM)
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def test_differences() -> None:
    one = torch.ones(2, 3)
    assert check.difference([one * 1.1], [one]) == pytest.approx(0.1)
    infinite = float("inf")
    assert check.difference([one], [one, one]) == check.difference([one], [torch.ones(3, 2)]) == infinite
    assert check.difference([one * float("nan")], [one]) == infinite
    assert not check.Comparison(1, (8, 8), float("nan")).good


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no MODEL; 'attnzoo list'"),
        (["dinat_nan"], "no model is named dinat_nan; did you mean dinat_nano"),
        (["van_b0", "--format", "tflite"], "--format is tflite; onnx and pt2 can be written"),
        (["van_b4"], "van_b4 has no published weights to load; give --checkpoint FILE or --random-weights"),
        (["van_b0", "--opset", "17"], "--opset is 17; 18 to 23 can be written"),
        (["van_b0", "--output", "nowhere/a.onnx"], "nowhere/a.onnx cannot be written"),
        (["van_b0", "--output", "a.pt2"], "--output a.pt2: the name of such a file ends in .onnx"),
        (["van_b0", "--img-size", "1", "2", "3"], "--img-size takes one or two numbers"),
        (["van_b0", "--quantize", "int8", "--format", "pt2"], "--quantize int8 is for --format onnx"),
        (["van_b0", "--quantize", "int8", "--features-only"], "leave out --features-only"),
        (["van_b0", "--quantize", "int8", "--no-dynamic-batch"], "--quantize needs --dynamic-batch"),
        (["van_b0", "--checkpoint", "a", "--random-weights"], "exclude each other"),
        (["van_b0", "--resume"], "--resume belongs to --all"),
        ([VIT, "--random-weights", "--img-size", "8"], "test_vit does not take 8x8 images"),
        (["--all"], "--all needs --output FOLDER for the files, or --check-only"),
        (["--all", "--check-only", "--dynamic-size"], "--dynamic-size is for one model"),
        (["--all", "--check-only", "--resume"], "--resume needs --json FILE"),
        (["nothing*", "--all", "--check-only"], "no model matches nothing*"),
    ],
)
def test_bad_input(words: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_without_photographs(tmp_path: Path, capsys) -> None:
    words = [VIT, "--random-weights", "--quantize", "int8", "--images", tmp_path, "--output", tmp_path / "a.onnx"]
    assert export(*words) == 2
    assert "holds no photographs" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert export(*words) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert export(VIT, "--random-weights", "--output", tmp_path / "a.onnx") == 2
    assert capsys.readouterr().err == (f"attnzoo export: {package} is not installed; pip install 'attnzoo[export]'\n")


def test_all_models_resume(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "export.json"
    words = ["*_nano", "--all", "--check-only", "--format", "pt2", "--json", file]
    asked = []

    def fails_once(model, request, facts, path):
        asked.append(facts["model"])
        if facts["model"] == "dinat_nano" and asked.count("dinat_nano") == 1:
            raise RuntimeError("no way")
        return job.Outcome([check.Comparison(1, request.img_size, 1e-6)], size=9)

    monkeypatch.setattr(sweep, "export", fails_once)
    assert export(*words) == 3
    rows = json.loads(file.read_text())["models"]
    assert rows["biformer_nano"]["sizes"] == {size: {"error": 1e-6, "bytes": 9} for size in ("32x32", "64x96")}
    assert rows["biformer_nano"]["status"] == "good" and rows["dinat_nano"]["status"] == "failed"
    assert rows["dinat_nano"]["reason"] == "32x32: RuntimeError: no way"
    assert asked == ["biformer_nano", "biformer_nano", "dinat_nano"]
    assert export(*words, "--resume") == 0
    assert asked[3:] == ["dinat_nano", "dinat_nano"]
    report = json.loads(file.read_text())
    assert [row["status"] for row in report["models"].values()] == ["good", "good"]
    report["setting"]["packages"]["torch"] = "1.0"
    file.write_text(json.dumps(report))
    assert export(*words, "--resume") == 2


def test_all_models_keep_files_in_a_folder(tmp_path: Path) -> None:
    assert export("biformer_nano", "--all", "--format", "pt2", "--output", tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["biformer_nano.32x32.pt2", "biformer_nano.64x96.pt2"]


def test_other_sizes() -> None:
    assert [other_size(size) for size in ((224, 224), (384, 384), (32, 32))] == [(160, 192), (288, 320), (32, 32)]


@pytest.mark.parametrize("img_size", [(32, 32), (64, 64), (96, 99), (224, 224)])
def test_sizes_that_an_open_size_is_compared_at(img_size: tuple[int, int]) -> None:
    (height, width), odd, *smaller = open_sizes(img_size)
    assert height > img_size[0] and width > img_size[1] and height != width + img_size[0] - img_size[1]
    assert height % 32 == width % 32 == 0 and odd[0] % 2 == odd[1] % 2 == 1
    assert odd[0] > img_size[0] and odd[1] > img_size[1]
    assert smaller == ([(160, 192)] if img_size == (224, 224) else [])
