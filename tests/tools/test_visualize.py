"""``attnzoo visualize`` on real photographs: its pictures, its page, its analyses and its one-line errors."""

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from attnzoo.tools.main import main
from attnzoo.tools.visualization import analysis, drawing
from attnzoo.tools.visualization.drawing import draw_map
from attnzoo.tools.visualization.panels import Panel, compose
from attnzoo.weights.writer import save_safetensors
from attnzoo.zoo import attention_maps
from attnzoo.zoo.maps.base import AttentionMap

SIZE = (96, 128)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """Chelsea the cat, 451x300."""
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return path


def draw(name: str, layer: str, query: tuple[float, float] = (70, 40), **kwargs):
    """A figure, as the command draws it for the photograph."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    picture = np.asarray(Image.fromarray(data.chelsea()).resize(SIZE[::-1]))
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255 - 0.5
    one = attention_maps(model, image, [layer], query)[layer]
    figure = draw_map(one, picture, name, "a note", "random weights")
    return one, [axes for axes in figure.axes if axes.get_visible()], figure


def boxes(axes) -> list[tuple[float, float, float, float]]:
    """Top, left, height and width of each rectangle."""
    return [(patch.get_y(), patch.get_x(), patch.get_height(), patch.get_width()) for patch in axes.patches]


def test_pictures_and_page(cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "more" / "cat.jpg"
    other.parent.mkdir()
    Image.fromarray(data.astronaut()).save(other)
    out = tmp_path / "out"
    layer = "stages.1.blocks.1.attn"
    command = ["visualize", "dinat_nano.digits", str(cat), str(other), "--img-size", "64", "--output", str(out)]
    assert main([*command, "--layer", layer, "--query", "100,50", "--html"]) == 0
    names = [f"dinat_nano.digits.{photograph}.{layer}.png" for photograph in ("cat", "cat-2")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "index.html"])
    assert capsys.readouterr().out.split() == [str(out / name) for name in (*names, "index.html")]
    pictures = [np.asarray(Image.open(out / name).convert("RGB")) for name in names]
    assert all(picture.std() > 20 for picture in pictures) and pictures[0].shape != pictures[1].shape

    page = (out / "index.html").read_text()
    assert not re.search(r"""https?:|(?:src|href)="(?!data:)|url\(|@import""", page)
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(one) for one in embedded] == [(out / name).read_bytes() for name in names]
    assert all(name in page for name in names)


def test_layers_that_are_drawn_unless_named(cat: Path, tmp_path: Path) -> None:
    """The last of each kind and size."""
    assert main(["visualize", "biformer_nano", str(cat), "--img-size", "64", "--output", str(tmp_path / "out")]) == 0
    layers = ("stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.1", "stages.3.blocks.0")
    expected = {f"biformer_nano.cat.{layer}.block.attn.png" for layer in layers}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected


def test_weights_are_named(cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = []
    compose = drawing.compose
    monkeypatch.setattr(drawing, "compose", lambda *args: notes.append(args[-2:]) or compose(*args))
    layer = ["--layer", "stages.3.blocks.0.attn", "--img-size", "32", "--output", str(tmp_path / "out")]
    weights = tmp_path / "mine.safetensors"
    save_safetensors(timm.create_model("dinat_nano", num_classes=10).state_dict(), weights)
    assert main(["visualize", "dinat_nano", str(cat), *layer]) == 0
    assert main(["visualize", "dinat_nano.digits", str(cat), *layer]) == 0
    assert main(["visualize", "dinat_nano", str(cat), "--pretrained", *layer]) == 0
    own = ["--checkpoint", str(weights), "--num-classes", "10"]
    assert main(["visualize", "dinat_nano", str(cat), *own, *layer]) == 0
    assert [warning for _, warning in notes] == ["random weights", "", "", ""]
    assert [note.partition(",")[0] for note, _ in notes[1:]] == ["weights: digits"] * 2 + ["weights: mine.safetensors"]


def test_the_warning_is_on_the_picture() -> None:
    _, _, figure = draw("dinat_nano", "stages.3.blocks.0.attn")
    assert figure.get_supxlabel() == "random weights  a note"
    assert figure._supxlabel.get_color() == "#c00000"


def test_titles_stay_in_their_column() -> None:
    titles = ["mean, 12% on padding: 0.00189 to 0.00207", "head 0", "a" * 60, "head 2: 0.00207 to 0.00211"]
    panels = [Panel(title, lambda axes: axes.plot([0, 1])) for title in titles]
    figure = compose(panels, 1.5, f"{'model.tag' * 20}\nwhat it is", "a note")
    figure.draw_without_rendering()
    extents = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in zip(extents, extents[1:], strict=False))
    assert extents[0].x0 >= 0 and extents[-1].x1 <= figure.bbox.width
    heading = next(text for text in figure.texts if text.get_text().startswith("model"))
    assert heading.get_window_extent().x0 >= 0
    assert [axes.title.get_fontsize() for axes in figure.axes][1::2] == [8.5, 8.5]


def test_dilated_neighborhood_is_drawn() -> None:
    one, axes, _ = draw("dinat_mini", "stages.0.blocks.1.attn", depths=(2, 1, 1, 1), dilations=[[1, 3], [1], [1], [1]])
    found = boxes(axes[0])
    assert len(found) == 49 and {(height, width) for *_, height, width in found} == {(4.0, 4.0)}
    assert {(round(top / 4), round(left / 4)) for top, left, *_ in found} == set(one.neighborhood())
    tops = sorted({top for top, *_ in found})
    assert {below - above for above, below in zip(tops, tops[1:], strict=False)} == {12.0}


def test_routed_regions_are_drawn() -> None:
    one, axes, _ = draw("biformer_nano", "stages.0.blocks.0.block.attn")
    assert [text.get_text() for text in axes[0].texts] == [str(n + 1) for n in range(one.topk)]
    (rows, columns), cell = one.region_size, one.key_cell[0]
    size = (rows * cell, columns * cell)
    for row, column in one.regions():
        assert (row * size[0], column * size[1], *size) in boxes(axes[0])


def test_agents_are_drawn() -> None:
    one, axes, _ = draw("agent_deit_tiny", "stages.0.attn", depth=1)
    titles = [each.get_title() for each in axes]
    assert [title.partition(":")[0] for title in titles] == [
        "query", "mean", "head 0", "head 1", "head 2", "query to agents",
        *(title.partition(":")[0] for title in titles[6:9]), "class token",
    ]  # fmt: skip
    best = divmod(int(one.query_weights().mean(0).argmax()), one.agent_grid[1])
    assert titles[6].startswith(f"agent ({best[0]}, {best[1]}):")


def test_kept_connections_are_drawn() -> None:
    one, axes, _ = draw("sparsifiner_deit_tiny", "stages.0.attn", depth=1)
    (dots,) = axes[0].collections
    assert len(dots.get_offsets()) == int((one.kept().sum(0) > 0).sum())


def test_kernels_are_drawn() -> None:
    one, axes, _ = draw("overlock_xt", "stages.2.focus.blocks.0.attn.contmix:small")
    kernels = [each for each in axes if each.get_title().startswith("kernel ")]
    assert len(kernels) == min(one.heads, 8)
    np.testing.assert_array_equal(kernels[0].images[0].get_array(), one.kernel()[0].detach().double().numpy())


def test_windows_and_receptive_fields_are_drawn() -> None:
    one, axes, _ = draw("l2vit_tiny", "stages.0.blocks.0.attn", depths=(2, 2, 2, 2))
    assert boxes(axes[0]) == [(28.0, 56.0, 28.0, 28.0)] and one.window == (7, 7)
    _, axes, _ = draw("van_b0", "stages.0.blocks.0.attn.lka", depths=(1, 1, 1, 1))
    assert len(axes) == 2 and axes[0].patches[0].center == (70, 40)


def test_list_layers(capsys: pytest.CaptureFixture) -> None:
    assert main(["visualize", "dinat_nano.digits", "--list-layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0] == "stages.0.blocks.0.attn  neighborhood of 3×3 keys, dilation 1×1; 8×8 tokens, 1 head"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dinat_nan", "{cat}"], "no model is named dinat_nan; did you mean dinat_nano"),
        (["dinat_nano.digit", "{cat}"], "dinat_nano has no weights with the tag digit; did you mean digits?"),
        (["dinat_nano"], "no photograph given"),
        (["dinat_nano", "missing.png"], "cannot read missing.png: No such file"),
        (["dinat_nano", "{text}"], "cannot be decoded: not an image"),
        (
            ["dinat_nano", "{cat}", "--query", "451,3"],
            "--query 451,3 is outside cat: x from 0 to 450 and y from 0 to",
        ),
        (
            ["dinat_nano", "{cat}", "--img-size", "32", "--layer", "stem"],
            "dinat_nano has no attention map of layer stem; it has stages.0.blocks.0.attn, stages.0.blocks.1.attn, ",
        ),
        (["dinat_nano", "{cat}", "--img-size", "0"], "--img-size takes one or two numbers of at least 1, not 0"),
        (["vit_small_gqa", "{cat}", "--pretrained"], "vit_small_gqa has no published weights"),
        (["dinat_nano", "{cat}", "--pretrained", "--checkpoint", "x"], "give one of them"),
        (
            ["resnet18", "{cat}", "--img-size", "32"],
            "resnet18 gives no maps of a 32x48 image: ResNet has no layer",
        ),
        (
            ["dinat_nano.digits", "{cat}", "--img-size", "32", "--analysis", "head-importance", "--target", "10"],
            "--target 10 is no class; 0 to 9 work",
        ),
        (["van_b0", "{cat}", "--img-size", "32", "--analysis", "head-importance"], "needs layers with heads"),
        (["dinat_nano", "{cat}", "--img-size", "32", "--output", "{text}"], "cannot make the folder"),
    ],
)
def test_errors(arguments: list[str], message: str, cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    arguments = [word.format(cat=cat, text=text) for word in arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "out")]
    assert main(["visualize", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_query_that_is_no_pixel(cat: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["visualize", "dinat_nano", str(cat), "--query", "middle"])
    assert "'middle' is no pixel; 120,80 works" in capsys.readouterr().err


def test_without_matplotlib(cat: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["visualize", "dinat_nano", str(cat), "--img-size", "32"]) == 2
    said = capsys.readouterr().err
    assert said == "attnzoo visualize: matplotlib is not installed; pip install 'attnzoo[visualize]'\n"


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_attention_distance_command(cat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["visualize", "dinat_nano.digits", str(cat), "--img-size", "64", "--output", str(out)]
    assert main([*command, "--analysis", "attention-distance", "--html"]) == 0
    rows = read(out / "dinat_nano.digits.attention-distance.csv")
    assert [row["head"] for row in rows[:4]] == ["0", "0", "0", "1"] and len(rows) == 1 + 1 + 2 + 2 + 4 + 4 + 8
    assert "data:image/png" in (out / "index.html").read_text()
    # Three keys of four pixels each side of the query, dilation one: no key is further than a diagonal.
    assert 0 < float(rows[0]["mean attention distance (pixels)"]) <= 3 * 4 * 2**0.5


class OneKey(AttentionMap):
    """Every query looks at the key two rows down and one column to the right of it, or at itself."""

    kind = "softmax"

    def row(self, row: int, column: int) -> Tensor:
        full = torch.zeros(2, *self.key_grid)
        full[0, row, column] = 1
        full[1, row + 2, column + 1] = 1
        return full.flatten(1)


def test_attention_distance_is_in_pixels() -> None:
    one = OneKey(layer="", grid=(10, 10), key_grid=(12, 12), heads=2, image_size=(40, 40), query=(0, 0))
    table = analysis.attention_distances([{"a": one}, {"a": one}])
    assert table.rows["a"] == pytest.approx([0, 4 * 5**0.5])


def test_head_importance_of_a_head_that_is_not_used() -> None:
    """A head whose channels the projection ignores changes nothing; without the others the loss is another."""
    torch.manual_seed(0)
    model = timm.create_model("dinat_nano.digits", pretrained=True).eval()
    layer, heads = "stages.2.blocks.0.attn", 4
    projection = model.get_submodule(layer).proj
    with torch.no_grad():
        projection.weight.unflatten(1, (heads, -1))[:, 2] = 0
    images = [torch.randn(3, 32, 32), torch.randn(3, 48, 32)]
    maps = [attention_maps(model, image, [layer]) for image in images]
    table = analysis.head_importance(model, images, maps, target=7)
    growth = table.rows[layer]
    assert growth[2] == 0 and all(abs(value) > 1e-4 for head, value in enumerate(growth) if head != 2)

    with torch.no_grad():
        width = projection.in_features // heads
        before = [torch.nn.functional.cross_entropy(model(image[None]), torch.tensor([7])) for image in images]
        projection.weight[:, :width] = 0
        after = [torch.nn.functional.cross_entropy(model(image[None]), torch.tensor([7])) for image in images]
    assert growth[0] == pytest.approx(float(sum(after) - sum(before)) / 2, rel=1e-4)


def test_head_importance_command(cat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["visualize", "dinat_nano.digits", str(cat), "--img-size", "32", "--output", str(out)]
    assert main([*command, "--analysis", "head-importance", "--layer", "stages.3.*"]) == 0
    rows = read(out / "dinat_nano.digits.head-importance.csv")
    assert [row["layer"] for row in rows] == ["stages.3.blocks.0.attn"] * 8
    assert Image.open(out / "dinat_nano.digits.head-importance.png").size[0] > 600


def test_documented_pictures_and_commands(capsys: pytest.CaptureFixture) -> None:
    """The page's pictures are there and small, and its commands' options exist."""
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "visualize.md").read_text()
    pictures = re.findall(r"\]\((\S+\.png)\)", text)
    assert len(pictures) == 2
    assert all((docs / name).stat().st_size < 250_000 for name in pictures)
    with pytest.raises(SystemExit):
        main(["visualize", "--help"])
    assert set(re.findall(r"(?<!-)--[a-z][a-z-]*", text)) <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
