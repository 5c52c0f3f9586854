from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import InvalidManifest
from cdi.api.overhead import (
    NO_OVERHEAD,
    parse_overhead,
    required,
    round_down,
    round_up,
    usable,
)
from cdi.api.quantity import MIB

sizes = st.integers(1, 1 << 62)
overheads = st.integers(0, 1000).map(lambda thousandths: Fraction(thousandths, 1000))


@given(sizes, overheads)
def test_a_volume_of_the_required_size_holds_the_disk(size, overhead):
    assert usable(required(size, overhead), overhead) >= size


@given(sizes, overheads)
def test_nothing_larger_than_needed_is_required(size, overhead):
    exact = round_up(size, MIB) * (1 + overhead)
    assert exact <= required(size, overhead) < exact + 1


@given(sizes, sizes, overheads)
def test_a_larger_volume_never_holds_less(one, other, overhead):
    small, large = sorted((one, other))
    assert usable(small, overhead) <= usable(large, overhead) <= large + MIB


@given(sizes, st.sampled_from([512, 4096, MIB]))
def test_rounding_gives_the_nearest_multiples(size, unit):
    assert round_down(size, unit) <= size <= round_up(size, unit)
    assert round_up(size, unit) - round_down(size, unit) in (0, unit)


def test_the_default_is_six_per_cent_and_exact():
    assert required(100 * MIB) == 106 * MIB
    assert required(10 << 30) == 11381663335  # ceil(10 GiB * 1.06), which floating point gets wrong
    assert required(1, NO_OVERHEAD) == MIB


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("0.06", Fraction(6, 100)), ("0.999", Fraction(999, 1000)), ("1", 1)]
)
def test_an_overhead_has_up_to_three_decimals(text, value):
    assert parse_overhead(text) == value


@pytest.mark.parametrize(
    "text", ["", "1.0", "1.5", "01", "-0.1", ".5", "0.", "0.1234", "6%", "0,06", "nan", "00", "0.06\n", "٠"]
)
def test_other_overheads_are_refused(text):
    with pytest.raises(InvalidManifest):
        parse_overhead(text)


def test_with_an_overhead_of_one_a_volume_is_twice_its_disk():
    assert required(100 * MIB, parse_overhead("1")) == 200 * MIB
    assert usable(200 * MIB, parse_overhead("1")) == 100 * MIB
