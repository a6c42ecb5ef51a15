"""``attnzoo bench ops``, ``models`` and ``docs``: what is checked before it is timed, and what is written."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from attnzoo.kernels import dispatch
from attnzoo.tools.benchmarks import docs, goals, ops, peers, published, sides, timing
from attnzoo.tools.benchmarks.cases import CASES, OPS, Case
from attnzoo.tools.benchmarks.check import TOLERANCES, Truth
from attnzoo.tools.benchmarks.models import MODELS, TIMM_MODELS
from attnzoo.tools.benchmarks.peers import PEERS, Peer
from attnzoo.tools.benchmarks.published import Form
from attnzoo.tools.benchmarks.report import read_report
from attnzoo.tools.main import main
from attnzoo.zoo import list_models

CPU = torch.device("cpu")
# The last shape of an op is its cheapest.
CHEAPEST = {case.op: case for case in CASES}
DILATED = next(case for case in CASES if "dilation 8" in case.label)
VISION_FLOW = next(case for case in CASES if case.op == "flow_attention")


def errors(case: Case, dtype: torch.dtype, backward: bool) -> dict[str, float]:
    inputs = case.draw(2, dtype, CPU)
    truth = Truth(case, inputs, backward)
    return {
        side.name: truth.error(side.build, {k: v for k, v in inputs.items() if k not in side.without}, lambda run: run)
        for side in ops.sides_of(case, inputs, compiled=False, backward=backward)
        if side.name != "natten"
    }


@pytest.mark.parametrize("case", [*CHEAPEST.values(), DILATED, VISION_FLOW], ids=lambda case: f"{case.op}-{case.label}")
def test_every_form_computes_the_op(case):
    found = errors(case, torch.float32, backward=False)
    assert {"torch", "reference"} < found.keys()
    assert max(found.values()) <= TOLERANCES["float32"], found


def natten_scores(q, k, bias, kernel_size, dilation):
    """What natten 0.14's natten2dqkrpb is documented to return: ``[B, heads, H, W, K * K]``, not scaled."""
    index, offsets = published.square_windows(q.shape[2], kernel_size, dilation, q.device)
    scores = torch.einsum("bhnd,bhnkd->bhnk", q.flatten(2, 3), k.flatten(2, 3)[:, :, index])
    return (scores + bias.flatten(1)[:, offsets]).unflatten(2, q.shape[2:4])


def natten_values(weights, v, kernel_size, dilation):
    index, _ = published.square_windows(v.shape[2], kernel_size, dilation, v.device)
    return torch.einsum("bhnk,bhnkd->bhnd", weights.flatten(2, 3), v.flatten(2, 3)[:, :, index]).view(v.shape)


def test_natten_with_the_bias_computes_the_op(monkeypatch):
    functional = SimpleNamespace(natten2dqkrpb=natten_scores, natten2dav=natten_values)
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(functional=functional))
    monkeypatch.setitem(sys.modules, "natten.functional", functional)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.14.6")
    ((name, peer),) = peers.natten_peer().items()
    assert name in CASES[0].goals and not peer.without
    case = CHEAPEST["neighborhood_attention"]
    inputs = case.draw(2, torch.float32, CPU)
    assert Truth(case, inputs, False).error(peer.build, inputs, lambda run: run) <= TOLERANCES["float32"]


def test_natten_of_today_takes_no_bias(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.21.7")
    assert peers.natten_peer()["natten"].without == ("rel_pos_bias",)


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_every_form(op):
    found = errors(CHEAPEST[op], torch.float32, backward=True)
    assert max(found.values()) <= TOLERANCES["float32"], found


def test_every_op_of_the_package_has_a_case_and_a_peer():
    from attnzoo import kernels

    functions = {name for name in kernels.__all__ if name.endswith(("attention", "conv"))}
    assert set(OPS) == set(PEERS) == functions


def test_sides_take_turns():
    order = []
    timings = timing.take_turns([lambda: order.append("a"), lambda: order.append("b")], 3, CPU)
    turns = "".join(order)[2:].replace("aa", "a")
    collapsed = "".join(x for x, before in zip(turns, " " + turns, strict=False) if x != before)
    assert collapsed[-6:] == "ababab"
    assert [t.samples for t in timings] == [3, 3]


def test_a_sample_follows_untimed_calls(monkeypatch):
    monkeypatch.setattr(timing, "_WARM_SECONDS", 0.012)
    order = []

    def call(name):
        def work():
            order.append(name)
            done = time.process_time() + 0.006  # more than a sample: called once in each
            while time.process_time() < done:
                pass

        return work

    timing.take_turns([call("a"), call("b")], 4, CPU)
    # Twice at first, then three times a turn: two calls to warm up and the sample.
    assert "".join(order) == "aabb" + "aaabbb" * 4


def test_median_of_undisturbed_samples():
    quiet = [(1.0, True), (2.0, True), (3.0, True), (0.1, False), (50.0, False)]
    assert timing.summarize(quiet) == timing.Timing(2.0, 5, 3)
    assert timing.summarize([(5.0, False), (1.0, False), (9.0, False), (2.0, True)]) == timing.Timing(1.5, 4, 1)


def test_peak_memory_is_what_is_held_at_once():
    def call():
        first = torch.ones(2**18)  # 1 MiB, gone before the next
        total = first.sum()
        del first
        return torch.ones(2**18) + torch.ones(2**18) + total

    assert 3 * 2**20 <= timing.peak_bytes(call, CPU) < 3.1 * 2**20


def test_floor_is_the_longer_of_bytes_and_operations():
    best = timing.Ceilings(bytes_per_second=10.0, flops_per_second=100.0)
    assert best.floor(size=20, flops=100) == 2.0
    assert best.floor(size=20, flops=1000) == 10.0


def test_report_of_an_op(tmp_path, capsys):
    file, table = tmp_path / "ops.json", tmp_path / "ops.md"
    words = ["grouped_query_attention", "--batch", "2", "--repeat", "2", "--json", str(file), "--markdown", str(table)]
    assert main(["bench", "ops", *words]) == 0
    assert "× floor" in capsys.readouterr().out
    report = read_report(file)
    setting = report["setting"]
    assert (setting["dtype"], setting["threads"], setting["backward"]) == ("float32", torch.get_num_threads(), False)
    assert setting["torch"] == torch.__version__ and setting["copy_gb_per_second"] > 0 < setting["matmul_gflops"]
    assert setting["command"] == "attnzoo bench ops grouped_query_attention --batch 2 --repeat 2"
    (row,) = report["rows"]
    # Queries and result of 6 heads, keys and values of 3; the groups are six integers.
    assert row["bytes"] == 2 * 197 * 64 * 4 * (6 + 3 + 3 + 6) + 6 * 8
    assert row["flops"] == 2 * 4 * 197**2 * 6 * 64
    sides = {side["form"]: side for side in row["sides"]}
    assert sides.keys() == {"torch", "reference", "published", "SDPA"}
    assert sides["torch"]["ratio"] == 1.0
    for side in sides.values():
        assert side["ratio"] == pytest.approx(side["seconds"] / sides["torch"]["seconds"])
        assert side["floor_ratio"] == pytest.approx(side["seconds"] / row["floor_seconds"])
        assert side["peak_bytes"] >= 2 * 197 * 6 * 64 * 4 and side["error"] < 1e-6
    text = table.read_text()
    assert text.startswith(f"Measured {setting['date']} on ") and "| torch |" in text


def test_backward_counts_gradients(tmp_path):
    file = tmp_path / "ops.json"
    words = [
        "strip_attention",
        "--backward",
        "--batch",
        "1",
        "--repeat",
        "1",
        "--dtype",
        "float64",
        "--json",
        str(file),
    ]
    assert main(["bench", "ops", *words]) == 0
    (row,) = read_report(file)["rows"]
    given, out = 8 * (3136 + 49 + 49 * 64), 8 * 3136 * 64
    assert row["bytes"] == 3 * given + 2 * out
    assert {side["form"] for side in row["sides"]} == {"torch", "reference", "published", "SDPA"}
    assert max(side["error"] for side in row["sides"]) < 1e-12


@pytest.mark.slow
def test_compiled_forms_take_part(tmp_path):
    file = tmp_path / "ops.json"
    words = ["strip_attention", "--compile", "--batch", "1", "--repeat", "1", "--json", str(file)]
    assert main(["bench", "ops", *words]) == 0
    report = read_report(file)
    assert report["setting"]["compile"]
    assert {side["form"] for side in report["rows"][0]["sides"]} >= {"torch", "torch, compiled", "published"}


@pytest.mark.parametrize("factor", [1 + 1e-4, float("nan")], ids=["off", "nan"])
def test_a_wrong_form_gets_no_time(factor, tmp_path, capsys, monkeypatch):
    def build(inputs):
        right = PEERS["strip_attention"]["published"].build(inputs)
        return Form(lambda *tensors: right.run(*tensors) * factor, right.tensors, right.view)

    monkeypatch.setitem(
        PEERS, "strip_attention", {"published": PEERS["strip_attention"]["published"], "wrong": Peer(build)}
    )
    file = tmp_path / "ops.json"
    assert main(["bench", "ops", "strip_attention", "--batch", "1", "--repeat", "1", "--json", str(file)]) == 3
    printed = capsys.readouterr()
    assert "no time for wrong: off by" in printed.err and "wrong" not in printed.out
    (row,) = read_report(file)["rows"]
    assert {side["form"] for side in row["sides"]} == {"torch", "reference", "published"}


def test_a_wrong_gradient_gets_no_time(capsys, monkeypatch):
    published = PEERS["strip_attention"]["published"]

    def build(inputs):
        right = published.build(inputs)
        return Form(lambda q, k, v: right.run(q, k.detach(), v), right.tensors, right.view)

    monkeypatch.setitem(PEERS, "strip_attention", {"detached": Peer(build)})
    words = ["strip_attention", "--batch", "1", "--repeat", "1"]
    assert main(["bench", "ops", *words]) == 0
    assert main(["bench", "ops", "--backward", *words]) == 3
    assert "no time for detached: off by" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1, 1.001])
def test_a_peer_in_16_bits_may_be_inexact_but_not_wrong(factor, tmp_path, capsys, monkeypatch):
    """Rounded between its steps it is off by more than ours may be: that is the peer's own, and the report says it."""

    published = PEERS["strip_attention"]["published"]

    def build(inputs):
        right = published.build(inputs)

        def run(*tensors):
            out = right.run(*tensors) * factor
            return out if out.dtype == torch.float64 else (out * 8).round() / 8

        return Form(run, right.tensors, right.view)

    monkeypatch.setitem(PEERS, "strip_attention", {"rounded": Peer(build)})
    file = tmp_path / "ops.json"
    words = ["strip_attention", "--batch", "1", "--repeat", "1", "--dtype", "bfloat16", "--json", str(file)]
    assert main(["bench", "ops", *words]) == (0 if factor == 1 else 3)
    assert ("no time for rounded: off by" in capsys.readouterr().err) == (factor != 1)
    (row,) = read_report(file)["rows"]
    error = {side["form"]: side["error"] for side in row["sides"]}
    assert ("rounded" in error) == (factor == 1)
    assert error.get("rounded", 1) > TOLERANCES["bfloat16"] > error["torch"]


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory", 0),
        (ZeroDivisionError("by 0"), "ZeroDivisionError: by 0", 3),
    ],
)
def test_a_peer_that_fails_is_named_and_the_rest_is_timed(error, reason, status, tmp_path, capsys, monkeypatch):
    def build(inputs):
        def run(*tensors):
            raise error

        return Form(run, tuple(inputs[name] for name in "qkv"))

    monkeypatch.setitem(PEERS, "strip_attention", {"failing": Peer(build), **PEERS["strip_attention"]})
    file, table = tmp_path / "ops.json", tmp_path / "ops.md"
    words = ["strip_attention", "--batch", "1", "--repeat", "1", "--json", str(file), "--markdown", str(table)]
    assert main(["bench", "ops", *words]) == status
    assert f"no time for failing: {reason}" in capsys.readouterr().err
    (row,) = read_report(file)["rows"]
    assert {side["form"] for side in row["sides"]} == {"torch", "reference", "published", "SDPA"}
    assert row["absent"] == [{"form": "failing", "reason": reason}]
    assert f"|  | failing | none: {reason} |" in table.read_text()


def test_no_row_where_the_ops_choice_does_not_fit(tmp_path, monkeypatch, capsys):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ops, "_ready", too_large)
    file = tmp_path / "ops.json"
    assert main(["bench", "ops", "strip_attention", "--batch", "1", "--json", str(file)]) == 3
    assert read_report(file)["rows"] == [] and "no time for torch: out of memory" in capsys.readouterr().err


def test_a_run_that_ends_early_leaves_the_cases_before(tmp_path, monkeypatch):
    real, measured = ops.measure, []

    def measure(case, *rest):
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return real(case, *rest)

    monkeypatch.setattr(ops, "measure", measure)
    file = tmp_path / "ops.json"
    words = ["strip_attention", "grouped_query_attention", "--batch", "1", "--repeat", "1", "--json", str(file)]
    assert main(["bench", "ops", *words]) == 130
    assert len(read_report(file)["rows"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ops", "flow_atention"], "no op is called flow_atention; did you mean flow_attention"),
        (["ops", "--case", "1 token"], "--case '1 token' is in no description"),
        (["ops", "strip_attention", "--case", "7x7"], "is in no description: 3136 tokens to 49"),
        (["ops", "--threads", "0"], "--threads is 0; at least 1"),
        (["ops", "--batch", "-1"], "--batch is -1; at least 1"),
        (["ops", "--json", "nowhere/ops.json"], "nowhere/ops.json cannot be written"),
        (["models", "--markdown", "."], ". cannot be written"),
        (["ops", "--device", "abacus"], "--device abacus: "),
        (["ops", "--device", "hpu"], "--device hpu: "),
        (["ops", "--device", "meta"], "--device is meta; cpu and cuda"),
        (["models", "van_b00"], "no model is called van_b00; did you mean van_b0"),
        (["docs", "--results", "nowhere"], "nowhere has no cpu-ops.json"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_two_results_need_two_files(tmp_path, capsys):
    file = str(tmp_path / "report")
    assert main(["bench", "ops", "strip_attention", "--json", file, "--markdown", file]) == 2
    assert "would be written twice" in capsys.readouterr().err


@pytest.mark.parametrize("forced", ["reference", "nonsense"])
def test_the_environment_forces_nothing_here(forced, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "_forced", forced)
    words = ["strip_attention", "--batch", "1", "--repeat", "1", "--json", str(tmp_path / "report.json")]
    assert main(["bench", "ops", *words]) == 0
    (row,) = read_report(tmp_path / "report.json")["rows"]
    assert next(side for side in row["sides"] if side["form"] == "torch")["ratio"] == 1


def test_a_case_may_be_typed_without_a_cross(tmp_path):
    file = tmp_path / "ops.json"
    words = ["dynamic_depthwise_conv", "--case", "14x14", "--batch", "1", "--repeat", "1", "--json", str(file)]
    assert main(["bench", "ops", *words]) == 0
    assert [row["case"][:5] for row in read_report(file)["rows"]] == ["14×14"]


def test_models(tmp_path):
    file = tmp_path / "models.json"
    names = ["agent_deit_tiny", "vit_tiny_patch16_224"]
    assert main(["bench", "models", *names, "--batch", "1", "--repeat", "1", "--json", str(file)]) == 0
    ours, other = read_report(file)["rows"]
    assert [ours["model"], other["model"]] == names
    assert ours["parameters"] == 6_015_640
    side, defined = ours["sides"]
    assert defined["form"] == "reference" and defined["error"] == 0
    assert side["images_per_second"] == pytest.approx(1 / side["seconds"]) and side["error"] < 1e-5
    assert other["sides"][0]["error"] is None


def test_models_of_shared_code_all_stay_compiled():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    programs = []

    def backend(program, inputs):
        programs.append(program)
        return program.forward

    models = [type(f"Model{i}", (Model,), {})() for i in range(12)]
    with sides.room_to_compile(len(models)):
        compiled = [torch.compile(model, backend=backend, dynamic=False) for model in models]
        for _ in range(2):
            for function in compiled:
                function(torch.zeros(2))
    assert len(programs) == len(models)


def test_a_model_of_each_family():
    families = [timm.model_entrypoint(name).__module__ for name in MODELS]
    assert sorted(families) == sorted({timm.model_entrypoint(name).__module__ for name in list_models()})
    assert {timm.get_pretrained_cfg(name).input_size for name in (*MODELS, *TIMM_MODELS)} == {(3, 224, 224)}


def test_goals_are_judged_by_the_peer_they_name():
    case = CHEAPEST["dynamic_depthwise_conv"]
    side = [{"form": "published", "seconds": 4.0}, {"form": "torch", "seconds": 2.0}]
    row = {"op": case.op, "case": case.label, "sides": side}
    report = {"subject": "ops", "setting": {"backward": False, "compile": False}, "rows": [row]}
    assert goals.goals(report) == [(f"{case.op}, {case.label}", "published", 50, 2.0)]
    assert goals.goals({**report, "setting": {"backward": True, "compile": False}}) == []
    row["sides"] = side[1:]
    assert goals.goals(report) == []


def test_compiled_goals_are_judged_by_the_compiled_form():
    case = CHEAPEST["magnitude_aware_linear_attention"]
    seconds = {"published": 6.0, "torch": 4.0, "torch, compiled": 2.0}
    sides = [{"form": form, "seconds": value} for form, value in seconds.items()]
    row = {"op": case.op, "case": case.label, "sides": sides}
    report = {"subject": "ops", "setting": {"backward": False, "compile": True}, "rows": [row]}
    assert goals.goals(report) == [(f"{case.op}, {case.label}", "published", 2, 3.0)]
    row["sides"] = sides[:2]
    assert goals.goals(report) == []


def test_goals_on_a_gpu_are_others():
    case = next(case for case in CASES if case.op == "neighborhood_attention")
    seconds = {"triton": 1.0, "torch": 4.0, "SDPA, dense mask": 1.5, "gather": 9.0, "natten": 0.1}
    sides = [{"form": form, "seconds": value, "floor_ratio": 2 * value} for form, value in seconds.items()]
    row = {"op": case.op, "case": case.label, "sides": sides}
    setting = {"backward": False, "compile": False, "timer": "CUDA events"}
    report = {"subject": "ops", "setting": setting, "rows": [row]}
    head, _, share, ratio = goals.verdicts(report).splitlines()
    label = f"{case.op}, {case.label}"
    assert head == "#### Goals for fused kernels: 0 of 2 reached in this run"
    assert share == f"- {label}: 50% of the floor's speed; at least 60% is the goal: **not reached**."
    assert ratio == f"- {label}: 1.5 times as fast as `SDPA, dense mask`; at least 2 is the goal: **not reached**."
    sides[0].update(seconds=0.5, floor_ratio=1.25)
    assert goals.verdicts(report).count(": reached.") == 2
    setting["backward"] = True
    assert goals.verdicts(report) == ""


def test_docs_have_a_gpus_reports(tmp_path):
    root = Path(docs.__file__).parents[2] / "results"
    (tmp_path / "cpu-ops.json").write_bytes((root / "cpu-ops.json").read_bytes())
    report = json.loads((root / "cpu-resolution.json").read_text())
    report["setting"].update(timer="CUDA events", device="NVIDIA H200")
    (tmp_path / "gpu-resolution.json").write_text(json.dumps(report))
    text = docs.document(tmp_path)
    assert "## Models by image size, forward, on a GPU" in text and "No GPU was to be had" not in text


def test_docs_are_the_committed_results():
    root = Path(docs.__file__).parents[2]
    assert (root / "docs" / "benchmarks.md").read_text(encoding="utf-8") == docs.document()


def test_docs_say_what_was_not_measured(tmp_path):
    root = Path(docs.__file__).parents[2]
    (tmp_path / "cpu-ops.json").write_bytes((root / "results" / "cpu-ops.json").read_bytes())
    text = docs.document(tmp_path)
    assert "No GPU was to be had" in text and "## Models" not in text and "beside NATTEN" not in text
    report = json.loads((tmp_path / "cpu-ops.json").read_text())
    for _, _, aim, measured in goals.goals(report):
        assert (f"at least {aim:g} is the goal: **not reached**" in text) or measured >= aim
    (tmp_path / "cpu-ops.json").write_text("{}")
    assert main(["bench", "docs", "--results", str(tmp_path)]) == 2
