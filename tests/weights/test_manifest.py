"""The manifest: its schema, its names and what the published facts say of it."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import timm

import attnzoo.zoo  # noqa: F401  registers the models
from attnzoo.weights import CheckpointError
from attnzoo.weights.manifest import entries, find

ROOT = Path(__file__).parents[2]
MANIFEST = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(json.loads((ROOT / "weights_manifest.schema.json").read_text()))
FACTS = ROOT / "../shared/facts/published.json"
INDEX = ROOT / "../shared/parity/index.json"


def row(**changes: object) -> dict:
    changed = copy.deepcopy(next(row for row in MANIFEST["entries"] if row["id"] == "mavit_small.in1k"))
    return {"entries": [{**changed, **changes}]}


def test_the_schema_is_a_schema_and_the_manifest_keeps_to_it():
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(MANIFEST)] == []
    assert VALIDATOR.is_valid(row())
    assert VALIDATOR.is_valid(row(keys_sha256="0" * 64))


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://example.org/x.pth"},
        {"sha256": "abc"},
        {"keys_sha256": "abc"},
        {"size": 0},
        {"size": "12"},
        {"host": "ftp"},
        {"license": "none"},
        {"id": "Mavit Small"},
        {"metrics": {"top1": "84.7"}},
        {"host": "none"},
        {"host": "page", "url": None},
        {"task": "semantic"},
        {"surprise": 1},
    ],
)
def test_the_schema_refuses(changes):
    assert not VALIDATOR.is_valid(row(**changes))


def test_ids_and_models_are_unique_and_a_model_is_its_id():
    ids = [entry.id for entry in entries()]
    assert len(set(ids)) == len(ids) == 230
    assert all(entry.id == entry.model for entry in entries() if entry.model)
    assert all(entry.backbone == entry.model.split(".")[0] for entry in entries() if entry.model)


@pytest.mark.skipif(not FACTS.is_file(), reason="needs the published facts beside the repository")
def test_every_published_row_is_there_with_its_figures():
    rows = json.loads(FACTS.read_text(encoding="utf-8"))
    assert len(rows) == len(entries())
    for fact, entry in zip(rows, entries(), strict=True):
        file = fact["checkpoint"]
        assert entry.metrics == fact["metrics"], entry.id
        assert (entry.params_m, entry.flops_g) == (fact["params_M"], fact["flops_G"]), entry.id
        assert (entry.url, entry.file, entry.size) == (file["url"], file["file"], file["size_bytes"]), entry.id
        assert (entry.sha256, entry.sha256_prefix) == (file["sha256"], file["sha256_prefix"]), entry.id
        assert [mirror.url for mirror in entry.mirrors] == [mirror["url"] for mirror in fact["mirrors"]], entry.id
        assert (entry.task, entry.dataset, entry.resolution) == (fact["task"], fact["dataset"], fact["resolution"])
        assert (entry.family, entry.pretrain, entry.source) == (fact["family"], fact["pretrain"], fact["source"])


@pytest.mark.skipif(not INDEX.is_file(), reason="needs the parity fixtures beside the repository")
def test_backbones_are_the_zoos_names():
    known = {row["model"] for row in json.loads(INDEX.read_text())["models"].values()}
    assert {entry.backbone for entry in entries() if entry.backbone} - known == {"biformer_stl_nchw"}


@pytest.mark.parametrize(
    ("name", "dataset", "pretrain", "classes", "resolution", "top1"),
    [
        ("nat_mini.shi_in1k", "ImageNet-1K", None, 1000, 224, 81.8),
        ("dinat_large.shi_in22k", "ImageNet-22K", None, 21841, 224, None),
        ("dinat_large.shi_in22k_ft_in1k", "ImageNet-1K", "ImageNet-22K", 1000, 224, 86.6),
        ("dinat_large_384.shi_in22k_ft_in1k", "ImageNet-1K", "ImageNet-22K", 1000, 384, 87.4),
        ("dinat_large_384_11x11.shi_in22k_ft_in1k", "ImageNet-1K", "ImageNet-22K", 1000, 384, 87.5),
        ("dinat_large_11x11.shi_in22k", "ImageNet-22K", None, 21841, 224, None),
        ("vit_rpb_base.shi_in1k", "ImageNet-1K", None, 1000, 224, 82.5),
        ("agent_deit_small_448.in1k", "ImageNet-1K", None, 1000, 448, 83.1),
        ("agent_pvt_medium_256.in1k", "ImageNet-1K", None, 1000, 256, 83.8),
        ("overlock_tiny.in1k_reparam", "ImageNet-1K", None, 1000, 224, 84.2),
        ("l2vit_base.in22k", "ImageNet-22K", None, 21841, 224, None),
        ("mavit_tiny.in1k", "ImageNet-1K", None, 1000, 224, 82.9),
    ],
)
def test_some_rows_by_hand(name, dataset, pretrain, classes, resolution, top1):
    entry = find(name)
    assert (entry.dataset, entry.pretrain, entry.num_classes) == (dataset, pretrain, classes)
    assert (entry.resolution, entry.metrics.get("top1")) == (resolution, top1)


def test_every_model_is_a_tag_that_loads():
    assert {entry.model for entry in entries() if entry.model} <= set(timm.list_pretrained())
    assert find("van_b4").model is None


def test_licences_that_nobody_stated_are_not_made_up():
    for entry in entries():
        if entry.family.startswith("Agent") or entry.family == "MALA":
            assert entry.license == "none stated", entry.id


def test_no_figure_of_a_reconstruction_stands_beside_a_model():
    rows = [entry for entry in entries() if entry.family == "S2AFormer"]
    assert len(rows) == 25
    assert all(entry.model is None and entry.backbone is None and "reconstruction" in entry.notes for entry in rows)


def test_share_pages_are_no_downloads():
    for entry in entries():
        for place in (entry, *entry.mirrors):
            if place.url and ("onedrive" in place.url or "drive.google" in place.url or "/tree/" in place.url):
                assert place.host == "page", entry.id


def test_find_by_id_by_model_and_by_bare_name():
    assert find("dinat_mini.upernet_160k_ade20k").task == "semantic"
    assert find("dinat_large").id == "dinat_large.shi_in22k_ft_in1k"
    with pytest.raises(CheckpointError, match=r"'nat_minni.shi_in1k'; did you mean nat_mini.shi_in1k, ") as caught:
        find("nat_minni.shi_in1k")
    assert "\n" not in str(caught.value)


def test_entries_are_frozen():
    with pytest.raises(AttributeError):
        entries()[0].url = "https://example.org"
