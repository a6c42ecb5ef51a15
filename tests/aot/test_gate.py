"""Every fused kernel compiles for every architecture, without spills, and takes what the committed table says."""

import pytest
from aot import gate


def everything():
    return [
        pytest.param(case, dtype, width, target, id=f"{case.name}-{dtype}-{width}-{target}")
        for case in gate.cases()
        for dtype, width in case.every_run
        for target in gate.TARGETS
    ]


@pytest.mark.parametrize(("case", "dtype", "width", "target"), everything())
def test_compiles_within_its_means(case, dtype, width, target):
    table = gate.read_table()
    rows = list(gate.compile_case(case, dtype, width, target))
    faults = {row.name: row.faults or gate.compare(row, table) for row in rows}
    assert rows and not any(faults.values()), {name: fault for name, fault in faults.items() if fault}


def test_the_table_is_complete_and_no_kernel_in_it_at_fault():
    table = gate.read_table()["kernels"]
    names = {(case, dtype, int(width), target) for case, _, dtype, width, target in map(str.split, table)}
    swept = [(case.name, *size) for case in gate.cases() for size in gate.full_sweep(case)]
    assert names == {(*each, target) for each in swept for target in gate.TARGETS}
    allowed = {f"{case.name} {kernel}" for case in gate.cases() for kernel in case.allowed}
    for name, found in table.items():
        launch, target = name.rsplit(" ", 1)
        assert found["shared"] <= gate.SHARED[target], name
        assert not found["spilled"] or launch in allowed, name
