from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cdi.api.errors import InvalidManifest
from cdi.api.model import Amount
from cdi.api.quantity import MAX_BYTES, Quantity, human

BINARY = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
DECIMAL = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"]
numbers = st.from_regex(r"(?:[0-9]{1,12}\.?[0-9]{0,9}|\.[0-9]{1,9})", fullmatch=True)
suffixes = st.sampled_from(BINARY + DECIMAL) | st.from_regex(r"[eE][+-]?[0-9]{1,2}", fullmatch=True).filter(
    lambda text: abs(int(text[1:])) <= 64
)
quantities = st.builds("".join, st.tuples(st.sampled_from(["", "+", "-"]), numbers, suffixes))


@pytest.mark.parametrize(
    ("text", "size", "canonical"),
    [
        ("0", 0, "0"),
        ("0Gi", 0, "0"),
        ("1", 1, "1"),
        ("5.", 5, "5"),
        (".5Mi", 1 << 19, "512Ki"),
        ("1024Mi", 1 << 30, "1Gi"),
        ("1.5Gi", 3 << 29, "1536Mi"),
        ("10G", 10**10, "10G"),
        ("1000", 1000, "1k"),
        ("1500", 1500, "1500"),
        ("1.5", 2, "1500m"),
        ("-1.5", -2, "-1500m"),
        ("100m", 1, "100m"),
        ("1e3", 1000, "1e3"),
        ("12E3", 12000, "12e3"),
        ("1E", 10**18, "1E"),
        ("1Ei", 1 << 60, "1Ei"),
        ("8191Pi", 8191 << 50, "8191Pi"),
        ("+7k", 7000, "7k"),
        ("512", 512, "512"),
        ("1023Ki", 1023 << 10, "1023Ki"),
        ("0.5Ki", 512, "512"),
        ("0.1Ki", 103, "102400m"),
        ("1e-12", 1, "1e-9"),
    ],
)
def test_values_and_canonical_forms_are_those_of_kubernetes(text, size, canonical):
    quantity = Quantity.parse(text)
    assert quantity.bytes == size
    assert quantity.canonical() == canonical
    assert str(quantity) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "+", "-", "Gi", "1 Gi", "1gi", "1K", "1KB", "1GB", "1e", "1e1.5", "1ee3", "0x10", "1_000", "١٢", "1Gi\n",
     "NaN", "inf", "1e999999999", "1e-65", "9" * 200, "--1", "1.2.3"],
)  # fmt: skip
def test_what_is_not_a_quantity_is_refused(text):
    with pytest.raises(InvalidManifest):
        Quantity.parse(text)


@pytest.mark.parametrize("value", [None, 1.5, float("nan"), True, [], {}, b"1Gi", 10**100])
def test_other_types_are_refused(value):
    with pytest.raises(InvalidManifest):
        Quantity.parse(value)


def test_an_integer_is_a_plain_number():
    assert Quantity.parse(5368709120) == Quantity.parse("5Gi")


def test_equality_and_order_are_those_of_the_value():
    assert Quantity.parse("1Gi") == Quantity.parse("1024Mi")
    assert hash(Quantity.parse("1Gi")) == hash(Quantity.parse("1024Mi"))
    assert Quantity.parse("1G") < Quantity.parse("1Gi") <= Quantity.parse("1Gi")
    assert Quantity.parse("1Gi") != "1Gi"


@given(quantities)
def test_the_canonical_form_has_the_same_value_and_is_its_own_canonical_form(text):
    quantity = Quantity.parse(text)
    again = Quantity.parse(quantity.canonical())
    assert again == quantity
    assert again.canonical() == quantity.canonical()


@given(st.integers(0, 10**9), st.sampled_from(list(enumerate(BINARY, 1))))
def test_a_binary_suffix_multiplies_by_a_power_of_1024(number, suffix):
    power, letters = suffix
    assert Quantity.parse(f"{number}{letters}").bytes == number << (10 * power)


@given(st.integers(0, 10**9), st.integers(-9, 18))
def test_an_exponent_multiplies_by_a_power_of_ten(number, exponent):
    assert Quantity.parse(f"{number}e{exponent}").value == number * Fraction(10) ** exponent


@given(quantities)
def test_bytes_are_rounded_away_from_zero(text):
    quantity = Quantity.parse(text)
    assert abs(quantity.bytes) >= abs(quantity.value) > abs(quantity.bytes) - 1 or quantity.bytes == 0
    assert quantity.bytes * quantity.value >= 0


@given(st.integers(0, MAX_BYTES))
def test_a_size_in_bytes_survives_as_a_quantity(size):
    assert Quantity.parse(Quantity.of_bytes(size).text).bytes == size


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        Quantity.parse(text)
    except InvalidManifest:
        pass


def test_as_a_field_it_keeps_what_was_written():
    class Holder(BaseModel):
        size: Amount

    holder = Holder.model_validate({"size": "1024Mi"})
    assert holder.size == Quantity.parse("1Gi")
    assert holder.model_dump(mode="json") == {"size": "1024Mi"}
    assert Holder.model_validate({"size": 1024}).model_dump(mode="json") == {"size": 1024}
    with pytest.raises(ValidationError, match=r"'\{1\}' is not a quantity"):
        Holder.model_validate({"size": "{1}"})


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1000, "1000 bytes"), (1500, "1.5Ki"), (20 << 30, "20Gi"), (444_000_000, "423.4Mi")],
)
def test_sizes_for_people(size, text):
    assert human(size) == text
