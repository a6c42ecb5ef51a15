"""Which implementation runs, who decides, and what is said about it."""

import importlib.util
import sys
import threading

import pytest
import torch

from attnzoo.kernels import (
    agent_attention,
    dispatch,
    explain,
    get_backend,
    neighborhood_attention,
    use_backend,
)

X = torch.zeros(1, 8, 8, 2, 4)


@pytest.fixture
def op(monkeypatch):
    """An op of three implementations, of which triton runs on numbers below ten only."""
    monkeypatch.setattr(dispatch, "_ops", {})

    def prepare(number, *, double=False):
        if number < 0:
            raise ValueError(f"number must not be negative, got {number}")
        return (2 * number if double else number,)

    def small(number):
        return None if number < 10 else f"{number} is too large"

    return dispatch.Op(
        "op",
        prepare,
        triton=dispatch.Implementation(lambda number: ("triton", number), small),
        torch=dispatch.Implementation(lambda number: ("torch", number)),
        reference=dispatch.Implementation(lambda number: ("reference", number)),
    )


def public(op):
    def call(*args, **kwargs):
        return op(*args, **kwargs)

    call.__name__ = op.name
    return call


def test_each_op_chooses_the_first_that_can(op):
    assert op(3) == ("triton", 3)
    assert op(5, double=True) == ("torch", 10)


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_forced(op, backend):
    with use_backend(backend):
        assert get_backend() == backend
        assert op(3) == (backend, 3)
    assert get_backend() is None


def test_forced_and_unable_is_an_error_with_the_reason(op):
    with use_backend("triton"), pytest.raises(RuntimeError, match="op: the backend 'triton' .* 12 is too large"):
        op(12)


def test_forced_and_missing_is_an_error():
    with use_backend("triton"), pytest.raises(RuntimeError, match="has no triton implementation"):
        agent_attention(*[X[:, 0]] * 4)


def test_setter_context_and_nesting():
    try:
        use_backend("torch")
        assert get_backend() == "torch"
        with use_backend("reference"):
            with use_backend(None):
                assert get_backend() is None
            assert get_backend() == "reference"
        assert get_backend() == "torch"
    finally:
        use_backend(None)
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert get_backend() is None


def test_unknown_backend_changes_nothing():
    with pytest.raises(ValueError, match="'cuda'; known backends: 'triton', 'torch', 'reference'"):
        use_backend("cuda")
    assert get_backend() is None


def test_explain(op):
    call = public(op)
    assert str(explain(call, 12)) == (
        "op: torch runs\n  triton: 12 is too large\n  reference: can run; torch comes first"
    )
    assert explain(call, 3).chosen == "triton"
    assert explain(call, 6, double=True).chosen == "torch"
    with use_backend("triton"):
        assert str(explain(call, 12)) == (
            "op: nothing runs\n  triton: 12 is too large\n  torch: triton is forced\n  reference: triton is forced"
        )
    with pytest.raises(ValueError, match="got -1"):
        explain(call, -1)


def test_explain_a_real_op():
    text = str(explain(neighborhood_attention, X, X, X, kernel_size=3, dilation=2))
    assert text.startswith("neighborhood_attention: torch runs\n  triton: needs a CUDA device, not cpu")
    with pytest.raises(TypeError, match="explain takes one of .*neighborhood_attention"):
        explain(torch.relu, X)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        explain(neighborhood_attention, X, X, X, 4)


def imported_again(monkeypatch, value):
    """The dispatch module as it is when first imported with ATTNZOO_BACKEND set to ``value``."""
    monkeypatch.setenv("ATTNZOO_BACKEND", value)
    spec = importlib.util.spec_from_file_location("attnzoo.kernels.dispatch_again", dispatch.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_environment(monkeypatch):
    assert imported_again(monkeypatch, "reference").get_backend() == "reference"
    assert imported_again(monkeypatch, "").get_backend() is None


def test_unknown_backend_in_the_environment_is_an_error_at_first_use(monkeypatch):
    module = imported_again(monkeypatch, "cuda")
    op = module.Op("op", lambda: (), reference=module.Implementation(lambda: None))
    with pytest.raises(ValueError, match="ATTNZOO_BACKEND is 'cuda'; known backends: 'triton'"):
        op()
    with module.use_backend("reference"):
        op()


def test_a_gradient_is_only_minded_where_one_is_needed(monkeypatch):
    """Implementations look at the mode alone; tensors of the arguments decide, those in pairs too."""
    monkeypatch.setattr(dispatch, "_ops", {})
    seen = []

    def record(*args):
        seen.append(torch.is_grad_enabled())
        return args[0]

    op = dispatch.Op("op", lambda *args: args, reference=dispatch.Implementation(record))
    plain, learned = torch.ones(2), torch.ones(2, requires_grad=True)
    for args in ((plain, 3, None), (plain, (plain, plain)), (learned,), (plain, (plain, learned))):
        op(*args)
    with torch.no_grad():
        op(learned)
    assert seen == [False, False, True, True, False]
    with dispatch.observe_ops(lambda name, args, run: run()):
        op(plain)
    torch.func.jvp(op, (plain,), (plain,))
    torch.func.vmap(op)(plain)
    assert seen[5:] == [False, True, True]


def test_one_object_can_begin_several_blocks():
    reference = use_backend("reference")
    with reference, reference:
        assert get_backend() == "reference"
    with reference:
        assert get_backend() == "reference"
    assert get_backend() is None


def test_what_a_block_sets_ends_with_it():
    with use_backend("torch"):
        use_backend("reference")
        use_backend("triton")
        assert get_backend() == "triton"
    assert get_backend() is None


def test_a_block_holds_although_another_backend_was_set_before_it():
    reference = use_backend("reference")
    try:
        use_backend("torch")
        with reference:
            assert get_backend() == "reference"
        assert get_backend() == "torch"
    finally:
        use_backend(None)


def test_threads_that_set_at_once_leave_nothing_forced():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def blocks(name):
        for _ in range(300):
            with use_backend(name):
                pass
        done.append(name)

    done = []
    try:
        threads = [threading.Thread(target=blocks, args=(name,)) for name in ("torch", "reference")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(done) == 2 and get_backend() is None


def test_blocks_that_overlap_in_two_threads_leave_nothing_forced():
    first, second = threading.Event(), threading.Event()

    def outer():
        with use_backend("torch"):
            first.set()
            second.wait(60)

    thread = threading.Thread(target=outer)
    thread.start()
    first.wait(60)
    with use_backend("reference"):
        second.set()
        thread.join()
        assert get_backend() == "reference"
    assert get_backend() is None


def test_explain_knows_functions_not_names():
    def neighborhood_attention(*args, **kwargs):
        raise AssertionError

    with pytest.raises(TypeError, match="explain takes one of"):
        explain(neighborhood_attention, X, X, X, kernel_size=3)
