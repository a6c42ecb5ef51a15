"""Loops are found in machine code, and what cannot be looked at is said in one line."""

import importlib
import sys
from pathlib import Path

import pytest
from aot import gate

# A script, which finds its neighbor beside it.
sys.modules.setdefault("gate", gate)
sys.path.append(str(Path(__file__).parent))
loops = importlib.import_module("loops")


def test_a_loop_of_products_is_found(capsys):
    assert loops.main(["linear", "--width", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if not line.startswith(" ")] == [
        "reduce_kernel:",
        "apply_kernel:",
        "query_gradient_kernel:",
        "reduce_kernel:",
        "key_gradient_kernel:",
    ]
    found = [line for line in lines if line.startswith("  loop of")]
    # Each walks over blocks of tokens once, multiplies and reads memory.
    assert len(found) == 5 and all(" matrix" in line and " global" in line for line in found)


def test_code_without_a_way_back_has_no_loop():
    code = "LBB0:\n--:-:-:-:5\t@P0 BRA LBB1;\n02:-:-:Y:b\tIADD3 R0, R0, 0x1, RZ;\nLBB1:\n--:-:-:-:5\tBRA LBB1;\n"
    assert loops.read(code) == (["BRA", "IADD3", "BRA"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no case 'nothing', only causal_flow, dynamic_conv, "),
        (["--width", "65", "--dtype", "fp32"], "--width must be from 1 to 64 in fp32, got 65"),
    ],
    ids=str,
)
def test_what_cannot_be_looked_at(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        loops.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err
