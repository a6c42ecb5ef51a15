"""What the page computes, without the page: the part that is seen, clicks, classes, drawings, models kept."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.tools.cli import UserError
from attnzoo.tools.serving.answers import Choice, answer, clicked
from attnzoo.tools.serving.gallery import Gallery, Source, names
from attnzoo.tools.serving.look import SIDE, classify, overlay, read, view
from attnzoo.weights import CheckpointError
from attnzoo.weights.writer import save_safetensors
from attnzoo.zoo import attention_maps, list_models


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery()


@pytest.fixture(scope="module")
def cat(photographs: dict[str, Path]) -> Image.Image:
    return read(str(photographs["cat"]))


def test_view_is_the_middle_of_the_photograph(gallery: Gallery, cat: Image.Image) -> None:
    for name in ("dinat_nano.digits", "agent_deit_tiny"):
        exhibit = gallery.get(Source.of(name))
        seen = view(cat, exhibit)
        height, width = seen.picture.shape[:2]
        left, top, right, bottom = seen.box
        # The model's own transform made the picture; the box must say where that was.
        errors = {}
        for shift in (-4, 0, 4):
            there = _resized(cat, (left + shift, top, right + shift, bottom), (width, height))
            errors[shift] = np.abs(there - seen.picture).mean()
        assert errors[0] < 2.5 and errors[0] < 0.6 * min(errors[-4], errors[4]), errors
        assert (right - left) * height == pytest.approx((bottom - top) * width, rel=0.01)


def _resized(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)).astype(float)


def test_clicks_go_there_and_back(gallery: Gallery, cat: Image.Image) -> None:
    choice = Choice("dinat_nano.digits")
    seen = view(cat, gallery.get(Source.of("dinat_nano.digits")))
    for point in ((seen.box[0] + 1, seen.box[1] + 1), (225, 150), (300, 20)):
        x, y = seen.inside(point)
        scale = SIDE / seen.picture.shape[1]
        assert clicked(gallery, cat, (x * scale, y * scale), choice) == pytest.approx(point)
    with pytest.raises(UserError, match=r"does not see pixel 2, 150: it sees x from 92 to 359 and y from 17 to 283"):
        seen.inside((2, 150))


def test_numbers_are_the_models(gallery: Gallery, cat: Image.Image) -> None:
    exhibit = gallery.get(Source.of("dinat_nano.digits"))
    seen = view(cat, exhibit)
    top = classify(exhibit, seen)
    expected = exhibit.subject.model(seen.tensor[None])[0].softmax(0)
    assert list(top) == [f"digit {index}" for index in expected.argsort(descending=True)[:5]]
    assert list(top.values()) == pytest.approx(expected.sort(descending=True).values[:5].tolist())

    # The keys that are dark or bright are those of the map: the rest of the drawing is the grey photograph.
    layer = exhibit.layers[0]
    drawing, words = overlay(exhibit, seen, layer, (150, 60))
    one = attention_maps(exhibit.subject.model, seen.tensor, [layer], seen.inside((150, 60)))[layer]
    weighed = one.weights().mean(0) != 0
    assert 0 < weighed.sum() < weighed.numel() and words.startswith("neighborhood of 3×3 keys")
    rows, columns = one.key_grid
    cells = drawing[: SIDE // rows * rows, : SIDE // columns * columns].astype(int)
    cells = cells.reshape(rows, SIDE // rows, columns, SIDE // columns, 3)[:, 4:-4, :, 4:-4]
    coloured = np.median(np.ptp(cells, axis=-1), axis=(1, 3)) > 8
    assert (coloured == weighed.numpy()).all()


def test_a_layer_of_another_model_gives_way(gallery: Gallery, cat: Image.Image) -> None:
    shown = answer(gallery, cat, None, Choice("biformer_nano", "stages.9.attn"))
    assert shown.layer in shown.layers and shown.drawing is not None
    exhibit = gallery.get(Source.of("biformer_nano"))
    with pytest.raises(UserError, match="no attention map of layer head; there are stages.0"):
        overlay(exhibit, view(cat, exhibit), "head", None)


def test_models_without_maps_and_with_convolutions(gallery: Gallery, cat: Image.Image) -> None:
    assert "has no layer with an attention map" in answer(gallery, cat, None, Choice("resnet18")).note
    shown = answer(gallery, cat, (225, 150), Choice("van_b0"))
    assert shown.drawing is not None and len(shown.top) == 5
    assert all(name.endswith(")") and not name.startswith("class") for name in shown.top)


def test_what_is_chosen_is_named(gallery: Gallery, tmp_path: Path, cat: Image.Image) -> None:
    assert "Random weights" in answer(gallery, None, None, Choice("dinat_nano")).note
    file = tmp_path / "mine <b>.safetensors"
    model = gallery.get(Source.of("dinat_nano.digits")).subject.model
    save_safetensors(model.state_dict(), file)
    shown = answer(gallery, cat, None, Choice("dinat_nano", None, str(file), None))
    assert "Weights: mine &lt;b&gt;.safetensors." in shown.note
    trained = answer(gallery, cat, None, Choice("dinat_nano.digits"))
    assert list(shown.top.values()) == list(trained.top.values())
    for wrong, message in (
        (Choice("dinat_nano", None, str(file), "7"), "have another shape"),
        (Choice("dinat_nano", None, None, " 7 "), "no checkpoint file is given"),
        (Choice("dinat_nano", None, str(file), "0"), "at least 1 class, not 0"),
        (Choice("dinat_nano", None, str(file), "many"), "is no number of classes; 1000 works"),
        (Choice("dinat_nano", None, str(file), "9" * 5000), "is no number of classes; 1000 works"),
        (Choice("dinat_nano", None, str(file), "99999999999"), "1000000 classes are the most"),
        (Choice("dinat_nanu"), "did you mean dinat_nano"),
    ):
        assert message in answer(gallery, cat, None, wrong).note


def test_a_checkpoint_that_changes_is_read_again(tmp_path: Path) -> None:
    gallery = Gallery()
    file = tmp_path / "weights.safetensors"
    state = gallery.get(Source.of("dinat_nano.digits")).subject.model.state_dict()
    found = []
    for factor in (1, 2):
        save_safetensors({name: tensor * factor for name, tensor in state.items()}, file)
        found.append(gallery.get(Source.of("dinat_nano", str(file))).subject.weights_sha256)
    assert found[0] != found[1]
    with pytest.raises(CheckpointError, match="no such file"):
        gallery.get(Source.of("dinat_nano", str(tmp_path / "absent.pth")))


def test_gallery_keeps_few_and_loads_once() -> None:
    gallery = Gallery(kept=2)
    sources = [Source.of(name) for name in ("dinat_nano", "biformer_nano", "dinat_nano.digits")]
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(gallery.get(sources[0]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1
    digest = found[0].subject.weights_sha256
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for source in sources:
        gallery.get(source)
    assert len(gallery) == 2
    again = gallery.get(sources[0])
    assert again is not found[0] and again.subject.weights_sha256 == digest
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained weights first: those of the package, those that were downloaded, or all."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    local = names()
    assert local == ["dinat_nano.digits", *list_models()]
    published = names(published=True)
    assert len(published) > len(local) + 20 and "dinat_mini.shi_in1k" in published


def test_files_that_are_no_photographs(tmp_path: Path, photographs: dict[str, Path]) -> None:
    def refused(name: str, content: bytes, match: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=match) as error:
            read(str(path))
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)

    whole = photographs["cat"].read_bytes()
    refused("text.png", b"hello", "text.png cannot be shown: not an image")
    refused("empty.png", b"", "empty file")
    refused("cut.png", whole[: len(whole) // 2], "cut.png cannot be shown: .*truncated")
    refused("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image")
    big = whole[:16] + (40_000).to_bytes(4, "big") * 2 + whole[24:]
    refused("bomb.png", big, "bomb.png cannot be shown")
    wide = tmp_path / "wide.png"
    Image.new("1", (8000, 7000)).save(wide)
    refused("wide.png", wide.read_bytes(), "8000 x 7000 pixels, 52 million is the most")
