"""Damaged and strange files: every reader gives what it promises or its own error, in one line."""

import copy
import io
import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from fuzzing import fuzzed
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from attnzoo.tools.cli import UserError
from attnzoo.tools.evaluation.class_map import load_class_map, resolve_classes
from attnzoo.tools.evaluation.images import UnreadableImage, decode
from attnzoo.tools.training.config import RECIPES, load_recipe
from attnzoo.tools.training.schema import Recipe
from attnzoo.weights import CheckpointError, read_checkpoint
from attnzoo.weights.manifest import _entry

ROOT = Path(__file__).parents[2]
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(("1e-3", "", "n01440764", "none", -1, 0, 1, 10**400, "https://example.org/x", "2026-99-99", "a b")),
)
TREE = st.recursive(
    SCALAR,
    lambda tree: st.one_of(st.lists(tree, max_size=4), st.dictionaries(st.text(max_size=8), tree, max_size=4)),
    max_leaves=8,
)
DEEP = st.integers(100, 3000).map(lambda n: "[" * n + "]" * n)


def damaged(draw: Callable, content: bytes) -> bytes:
    """The bytes with some changed, cut off, repeated or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        way = draw(st.sampled_from(("byte", "byte", "word", "cut", "drop", "repeat", "insert")))
        if way == "byte" and data:
            data[place] = draw(st.integers(0, 255))
        elif way == "word":
            data[place : place + 4] = struct.pack("<I", draw(st.sampled_from((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 16))))
        elif way == "cut":
            del data[place:]
        elif way == "drop":
            del data[place : place + draw(st.integers(1, 64))]
        elif way == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        else:
            data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


def written(content: bytes, suffix: str, read: Callable[[Path], Any], error: type[Exception]) -> Any:
    """What ``read`` makes of a file, or None where it raises its own error in one line."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(content)
        try:
            return read(path)
        except error as problem:
            assert "\x00" not in str(problem)
            return None


@cache
def _images() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 17, 3), dtype=np.uint8)
    image, out = Image.fromarray(pixels), {}
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {})):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        out[kind] = stream.getvalue()
    exif = image.getexif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.convert("CMYK").save(stream, "JPEG", exif=exif)
    out["CMYK"] = stream.getvalue()
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(stream, "PNG")
    out["16-bit"] = stream.getvalue()
    return out


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "CMYK", "16-bit"])
@fuzzed(40)
def test_image_bytes(kind: str, draw: Callable) -> None:
    mode = draw(st.sampled_from(("RGB", "L")))
    try:
        image, notes = decode(io.BytesIO(damaged(draw, _images()[kind])), mode, exif=draw(st.booleans()))
    except UnreadableImage as problem:
        assert str(problem)
        return
    assert image.mode == mode and min(image.size) >= 1
    assert all(isinstance(note, str) for note in notes)
    assert np.asarray(image).shape[:2] == image.size[::-1]


@cache
def _checkpoints() -> dict[str, bytes]:
    state = {"stem.weight": torch.randn(4, 3), "norm.bias": torch.zeros(3, dtype=torch.float16), "n": torch.tensor(3)}
    out = {"safetensors": save(state)}
    for kind, zipped in (("zip", True), ("legacy", False)):
        stream = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, stream, _use_new_zipfile_serialization=zipped)
        out[kind] = stream.getvalue()
    return out


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@fuzzed(60)
def test_checkpoint_bytes(kind: str, draw: Callable) -> None:
    found = written(damaged(draw, _checkpoints()[kind]), ".pth", read_checkpoint, CheckpointError)
    assert found is None or type(found) is dict


@fuzzed(60)
def test_recipe(draw: Callable) -> None:
    tree = yaml.safe_load((RECIPES / draw(st.sampled_from(sorted(p.name for p in RECIPES.glob("*.yaml"))))).read_text())
    tree.pop("_base_", None)
    for _ in range(draw(st.integers(0, 3))):
        branch = tree
        while True:
            key = draw(st.sampled_from([*branch, "lr", "name", "", 3]))
            if not isinstance(branch.get(key), dict) or not branch[key] or draw(st.booleans()):
                break
            branch = branch[key]
        branch[key] = draw(TREE)
    content = yaml.safe_dump(tree, allow_unicode=True).encode()
    if draw(st.integers(0, 3)) == 0:
        content = draw(st.one_of(DEEP.map(str.encode), st.just(damaged(draw, content))))
    overrides = draw(
        st.lists(st.sampled_from(("optimizer.lr=1", "seed=x", "=", "a.b", "model.name=[", "data=1")), max_size=2)
    )
    found = written(content, ".yaml", lambda path: load_recipe(path, overrides), UserError)
    assert found is None or isinstance(found, Recipe)


@fuzzed(80)
def test_class_map(draw: Callable) -> None:
    suffix = draw(st.sampled_from((".txt", ".json")))
    content = draw(
        st.one_of(
            TREE.map(json.dumps),
            st.dictionaries(st.text(max_size=5), st.integers(-2, 5), max_size=5).map(json.dumps),
            st.lists(st.text(max_size=5), max_size=5).map(json.dumps),
            st.lists(st.text(max_size=9), max_size=5).map("\n".join),
            st.lists(st.sampled_from(("a 0", "b 1", "b,1", "n01440764 tench", "c", "")), max_size=5).map("\n".join),
            DEEP,
        )
    ).encode("utf-8", "surrogatepass")
    found = written(damaged(draw, content), suffix, lambda path: load_class_map(str(path)), UserError)
    if found is None:
        return
    assert all(type(label) is str and type(index) is int for label, index in found.items())
    labels = draw(st.lists(st.sampled_from(["a", "b", "c", *found]), min_size=1, max_size=5, unique=True))
    try:
        classes = resolve_classes(labels, draw(st.integers(1, 5)), found, "the map", draw(st.booleans()))
    except UserError:
        return
    assert set(classes.index) | set(classes.dropped) == set(labels)


VALIDATOR = jsonschema.Draft202012Validator(json.loads((ROOT / "weights_manifest.schema.json").read_text()))
ROWS = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))["entries"]


@fuzzed(60)
def test_manifest_row(draw: Callable) -> None:
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from([*row, "keys_sha256", "other"]))
        if draw(st.integers(0, 3)) == 0:
            row.pop(key, None)
        else:
            row[key] = draw(st.one_of(SCALAR, TREE, st.just(row.get("mirrors"))))
    if not VALIDATOR.is_valid({"entries": [row]}):
        return
    entry = _entry(row)
    assert entry.id and entry.family and isinstance(entry.mirrors, tuple)
    assert entry.size is None or entry.size >= 1
    assert entry.url is None or entry.url.startswith("https://")
