"""``attnzoo weights``: its output, its one-line errors and its exit statuses."""

import dataclasses
import functools
import hashlib
import http.server
import json
import threading

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from attnzoo.tools.main import main
from attnzoo.weights import manifest, read_checkpoint
from attnzoo.weights.manifest import Entry, entries, find


@pytest.fixture
def attnzoo(capsys):
    """Run the command; returns exit status, output and error text."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(["weights", *map(str, argv)])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def vit_file(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    torch.save(
        {"model": state, "model_ema": {name: tensor + 1 for name, tensor in state.items()}}, tmp_path / "vit.pth"
    )
    return tmp_path / "vit.pth"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A manifest of one row whose file a loopback server has."""
    folder = tmp_path / "served"
    folder.mkdir()
    save_file({"weight": torch.arange(1000.0)}, folder / "net.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        row = {**find("nat_mini.shi_in1k").__dict__, "id": "net.in1k", "model": "net.in1k", "file": "net.pth"}
        sha256 = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/net.pth"
        entry = Entry(**{**row, "url": url, "sha256": sha256, "mirrors": ()})
        monkeypatch.setattr(manifest, "entries", lambda: (entry,))
        yield entry
        server.shutdown()


def test_list_shows_names_figures_and_licences(attnzoo):
    status, out, _ = attnzoo("list", "nat_mini*", "--task", "classification")
    assert status == 0
    row = next(line for line in out.splitlines() if "nat_mini.shi_in1k" in line)
    assert "top1 81.8" in row
    assert "MIT" in row
    assert "download" in row
    assert "upernet" not in out


@pytest.mark.parametrize(("pattern", "rows"), [("overlock", 17), ("*", 230)])
def test_list_takes_a_part_of_a_name_and_shows_each_name_whole(attnzoo, pattern, rows):
    _, out, _ = attnzoo("list", pattern)
    wanted = [entry.id for entry in entries() if pattern.strip("*") in entry.id]
    assert len(wanted) == rows
    assert all(f" {name} " in out for name in wanted)


@pytest.mark.parametrize(("name", "title"), [("dinat_mini.shi_in1k", "1 row"), ("overlock", "17 rows")])
def test_list_counts_its_rows(attnzoo, name, title):
    _, out, _ = attnzoo("list", name)
    assert out.splitlines()[0].strip() == title


def test_list_as_json_is_the_manifest(attnzoo):
    status, out, _ = attnzoo("list", "dinat_large*", "--json")
    rows = json.loads(out)
    assert status == 0
    assert {row["id"] for row in rows} == {entry.id for entry in entries() if entry.id.startswith("dinat_large")}
    assert all(row["url"].startswith("https://") for row in rows)


def test_list_of_nothing_is_an_error(attnzoo):
    status, out, error = attnzoo("list", "nat_minni")
    assert (status, out) == (2, "")
    assert error.startswith("attnzoo weights: no published checkpoint matches 'nat_minni'; did you mean nat_mini.")


def test_pull_prints_the_path_and_verify_reads_it_all(attnzoo, served, tmp_path):
    status, out, error = attnzoo("pull", "net.in1k", "--cache-dir", tmp_path)
    path = tmp_path / "net.in1k-net.pth"
    assert (status, out) == (0, f"{path}\n"), error
    status, out, _ = attnzoo("verify", "net.in1k", "--cache-dir", tmp_path)
    assert status == 0
    assert f"{path}: good (published as net.in1k), 1 tensors" in out
    assert served.sha256 in out


def test_verify_finds_a_flipped_bit_in_the_cache(attnzoo, served, tmp_path):
    attnzoo("pull", "net.in1k", "--cache-dir", tmp_path)
    path = tmp_path / "net.in1k-net.pth"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, out, error = attnzoo("verify", "net.in1k", "--cache-dir", tmp_path)
    assert (status, out) == (2, "")
    assert f"{path}: has SHA-256 " in error
    assert path.exists()


def test_verify_holds_a_file_to_the_names_in_the_manifest(attnzoo, served, tmp_path, monkeypatch):
    attnzoo("pull", "net.in1k", "--cache-dir", tmp_path)
    other = dataclasses.replace(served, keys_sha256="0" * 64)
    monkeypatch.setattr(manifest, "entries", lambda: (other,))
    status, out, error = attnzoo("verify", "net.in1k", "--cache-dir", tmp_path)
    assert (status, out) == (2, "")
    assert "holds other names, shapes or dtypes than before" in error


def test_verify_of_what_is_not_there_names_the_place_and_the_command(attnzoo, tmp_path):
    status, _, error = attnzoo("verify", "nat_mini.shi_in1k", "--cache-dir", tmp_path)
    assert status == 2
    assert f"is not in the cache ({tmp_path}/nat_mini.shi_in1k-nat_mini.pth); 'attnzoo weights pull nat_" in error


def test_verify_goes_through_all_files_and_fails_for_the_bad_ones(attnzoo, tmp_path, vit_file):
    torch.save({"weight": torch.tensor([float("nan")])}, tmp_path / "nan.pth")
    (tmp_path / "page.pth").write_text("<html>")
    status, out, error = attnzoo("verify", tmp_path / "nan.pth", vit_file, tmp_path / "page.pth", tmp_path / "no.pth")
    assert status == 2
    assert f"{vit_file}: good, " in out
    assert "from 'model'" in out
    lines = error.splitlines()
    assert len(lines) == 3
    assert "NaN or infinity in weight" in lines[0]
    assert "HTML page" in lines[1]
    assert "no such file" in lines[2]


def test_pull_of_a_share_page_names_it_and_what_to_run(attnzoo, tmp_path):
    status, _, error = attnzoo("pull", "biformer_tiny", "--cache-dir", tmp_path)
    assert status == 2
    assert error.count("\n") == 1
    assert find("biformer_tiny").url in error
    out = tmp_path / "biformer_tiny.in1k.safetensors"
    assert f"attnzoo weights convert biformer_tiny.in1k biformer_tiny_in1k.pth {out}" in error


def test_a_shared_file_that_no_tag_loads_is_converted_by_its_models_name(attnzoo, tmp_path):
    status, _, error = attnzoo("pull", "van_b4.in1k", "--cache-dir", tmp_path)
    out = tmp_path / "van_b4.in1k.safetensors"
    assert (status, error.count("\n")) == (2, 1)
    assert f"attnzoo weights convert van_b4 FILE {out}\n" in error
    assert "(it loads with --checkpoint only; the classes of its head are not stated, 1,000 are tried)" in error
    torch.save({"state_dict": timm.create_model("van_b4").state_dict()}, tmp_path / "b4.pth")
    assert attnzoo("convert", "van_b4", tmp_path / "b4.pth", out)[0] == 0
    assert attnzoo("pull", "van_b4.in1k", "--cache-dir", tmp_path)[:2] == (0, f"{out}\n")


def test_convert_writes_the_models_own_names(attnzoo, tmp_path, vit_file):
    out = tmp_path / "out.safetensors"
    status, text, error = attnzoo("convert", "test_vit", vit_file, out)
    assert status == 0, error
    assert "from 'model'" in text
    raw = read_checkpoint(vit_file)["model"]
    timm.create_model("test_vit").load_state_dict(read_checkpoint(out), strict=True)
    assert all(torch.equal(read_checkpoint(out)[name], tensor) for name, tensor in raw.items())
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["source"] == "vit.pth"
    assert metadata["source_sha256"] == hashlib.sha256(vit_file.read_bytes()).hexdigest()


def test_convert_takes_a_key_and_a_precision(attnzoo, tmp_path, vit_file):
    out = tmp_path / "out.safetensors"
    status, text, _ = attnzoo("convert", "test_vit", vit_file, out, "--key", "model_ema", "--dtype", "bfloat16")
    assert status == 0
    assert "from 'model_ema'" in text
    average = read_checkpoint(vit_file)["model_ema"]
    assert all(torch.equal(tensor, average[name].bfloat16()) for name, tensor in read_checkpoint(out).items())


def test_what_the_share_pages_command_wrote_is_then_pulled(attnzoo, tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("biformer_tiny").state_dict()
    torch.save({"model": state}, tmp_path / "downloaded.pth")
    out = tmp_path / "biformer_tiny.in1k.safetensors"
    assert attnzoo("convert", "biformer_tiny.in1k", tmp_path / "downloaded.pth", out)[0] == 0
    assert attnzoo("pull", "biformer_tiny.in1k", "--cache-dir", tmp_path)[:2] == (0, f"{out}\n")
    model = timm.create_model("biformer_tiny.in1k", pretrained=True, cache_dir=tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_convert_of_what_does_not_fit_writes_nothing(attnzoo, tmp_path, vit_file):
    out = tmp_path / "out.safetensors"
    status, _, error = attnzoo("convert", "test_vit2", vit_file, out)
    assert status == 2
    assert error.startswith(f"attnzoo weights: {vit_file}: does not fit test_vit2: ")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "file", "out", "words"),
    [
        ("test_vit", "vit.pth", "out.pth", "OUT must end in .safetensors, not 'out.pth'"),
        ("test_vit", "vit.pth", "no/out.safetensors", "OUT cannot be written: there is no folder"),
        ("test_vit", "vit.pth", "there.safetensors", "OUT exists: "),
        ("test_vit", "vit.pth", "folder.safetensors", "OUT is a folder: "),
        ("test_vit", "there.safetensors", "there.safetensors", "OUT and FILE are the same"),
        ("test_vit", "nowhere.pth", "out.safetensors", "nowhere.pth: no such file"),
        ("biformer_tyni", "vit.pth", "out.safetensors", "no model 'biformer_tyni'; did you mean biformer_tiny"),
        ("van_b4.in1k", "vit.pth", "out.safetensors", "van_b4 has no weights with the tag in1k; it has none"),
        ("van_b0.nope", "vit.pth", "out.safetensors", "van_b0 has no weights with the tag nope; it has in1k"),
    ],
)
def test_convert_refuses_before_the_work(attnzoo, tmp_path, vit_file, model, file, out, words):
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    (tmp_path / "folder.safetensors").mkdir()
    status, _, error = attnzoo("convert", model, tmp_path / file, tmp_path / out)
    assert status == 2
    assert words in error
    assert error.count("\n") == 1
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_overwrites_only_when_told(attnzoo, tmp_path, vit_file):
    out = tmp_path / "there.safetensors"
    out.write_bytes(b"old")
    assert attnzoo("convert", "test_vit", vit_file, out, "--overwrite")[0] == 0
    assert "norm.weight" in read_checkpoint(out)


@pytest.mark.parametrize("argv", [[], ["fetch"], ["pull"], ["convert", "test_vit"], ["list", "--task", "sports"]])
def test_wrong_use_is_status_2(attnzoo, argv):
    assert attnzoo(*argv)[0] == 2
