"""Folders, classes and arguments that do not fit: refused before the first image, or counted."""

import json

import pytest
from evaluation_data import Probe, arguments, grey, make_folder


@pytest.fixture
def evaluate(attnzoo, tmp_path):
    def run(data, *more):
        file = tmp_path / "results.json"
        status, out, err = attnzoo(*arguments(data, "--results", file, *more))
        return status, err, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.fixture
def no_forward(monkeypatch):
    """A model that sees a batch of data fails the test; the check of the image size is one blank image."""
    forward = Probe.forward

    def only_blank(self, x):
        assert not x.any(), "the first batch was evaluated"
        return forward(self, x)

    monkeypatch.setattr(Probe, "forward", only_blank)


@pytest.mark.fault(15)
def test_empty_folder(evaluate, tmp_path):
    data = make_folder(tmp_path / "data", wrong=0)
    for file in (data / "b").iterdir():
        file.unlink()
    status, err, results = evaluate(data)
    assert (status, results["top1"], results["counts"]["total"]) == (0, 100.0, 16)
    assert results["data"]["class_map"]["index"] == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert "warning: 1 class folders hold no image: b" in err


@pytest.mark.fault(16)
def test_one_name_twice(refused, tmp_path, no_forward):
    for branch in ("one", "two"):
        make_folder(tmp_path / "data" / branch, per_class=1)
    assert "are named a: one/a and two/a; rename one" in refused(*arguments(tmp_path / "data"))


@pytest.mark.parametrize(
    "folders", [pytest.param(3, marks=pytest.mark.fault(17)), pytest.param(7, marks=pytest.mark.fault(18))]
)
def test_fewer_or_more_folders(refused, evaluate, tmp_path, no_forward, folders):
    data = make_folder(tmp_path / "data", per_class=1, classes=folders)
    line = refused(*arguments(data, "--results", tmp_path / "results.json"))
    assert f"the data has {folders} class folders (a, b, c" in line
    assert "but the model 5 classes; say which is which with --class-map FILE" in line
    assert not (tmp_path / "results.json").exists()


@pytest.mark.fault(17)
def test_a_map_makes_fewer_folders_right(evaluate, tmp_path):
    for name, label in (("x", 4), ("y", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        grey(label).save(tmp_path / "data" / name / "0.png")
    (tmp_path / "map.txt").write_text("p\ny\nq\nr\nx\n")
    status, _, results = evaluate(tmp_path / "data", "--class-map", tmp_path / "map.txt")
    assert (status, results["top1"]) == (0, 100.0)
    assert results["data"]["class_map"]["index"] == {"x": 4, "y": 1}


@pytest.mark.fault(18)
def test_an_index_beyond_the_classes(refused, tmp_path, no_forward):
    data = make_folder(tmp_path / "data", per_class=1)
    (tmp_path / "map.json").write_text('{"a": 0, "b": 1, "c": 2, "d": 3, "e": 9}')
    line = refused(*arguments(data, "--class-map", tmp_path / "map.json"))
    assert "has the index 9 but the model has 5 classes" in line


@pytest.mark.fault(19)
def test_a_map_of_few_folders(refused, evaluate, tmp_path):
    data = make_folder(tmp_path / "data", wrong=0)
    (tmp_path / "map.json").write_text('{"a": 0, "d": 3}')
    line = refused(*arguments(data, "--class-map", tmp_path / "map.json"))
    assert "does not name 3 of the 5 class folders (b, c, e)" in line
    assert "add --subset to leave them out" in line
    status, err, results = evaluate(data, "--class-map", tmp_path / "map.json", "--subset")
    assert (status, results["top1"], results["counts"]["total"]) == (0, 100.0, 8)
    assert results["data"]["left_out"]["its class is not in the class map"]["count"] == 12
    assert "files left out: 12 its class is not in the class map" in err


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "0"], "argument --batch-size: '0' is not a whole number of at least 1"),
        (["--batch-size", "many"], "argument --batch-size: 'many' is not a whole number of at least 1"),
        (["--workers", "-1"], "argument --workers"),
        (["--img-size", "0"], "argument --img-size"),
    ],
)
def test_numbers(attnzoo, tmp_path, monkeypatch, words, said):
    from attnzoo.tools import eval as command

    monkeypatch.setattr(command, "Session", None)
    status, out, err = attnzoo(*arguments(tmp_path, *words))
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]


@pytest.mark.fault(29)
def test_names(refused, tmp_path):
    make_folder(tmp_path / "images", per_class=1)
    assert "no model is named dinat_mimi; did you mean dinat_mini" in refused("eval", "dinat_mimi", "--data", tmp_path)
    assert "imags does not exist; did you mean images?" in refused(*arguments(tmp_path / "imags"))
    assert "neither a file nor a bundled one; did you mean" in refused("train", "digits_dinat_nan")
