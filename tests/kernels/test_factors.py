"""Factors in place of divisors, for the fused kernels."""

from hypothesis import given
from hypothesis import strategies as st

from attnzoo.kernels.fused._launch import factors_of

# A number that a kernel divides, and the largest one of its launch.
NUMBERS = st.integers(0, 2**29).flatmap(lambda most: st.tuples(st.integers(0, most) | st.just(most), st.just(most)))


@given(NUMBERS, st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_quotients_are_exact_or_there_is_no_factor(numbers, divisors):
    n, most = numbers
    factors = factors_of(divisors, most)
    for divisor, factor in zip(divisors, factors or (), strict=False):
        # Both factors of the product fit into 31 bits; the kernel takes its upper 32 bits.
        assert 4 * n < 2**31 and factor < 2**31
        assert 4 * n * factor >> 32 == n // divisor


def test_where_it_would_not_be_exact_there_is_none():
    assert factors_of((7, 3), 2**20) == (153391690, 357913942)
    assert factors_of((1,), 2**29 - 1) == (2**30,)
    assert factors_of((1,), 2**29) is None
    assert factors_of((2, 1025), 2**20) is None
