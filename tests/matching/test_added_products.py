"""A product that is only added to something is added to it where it lies; any other one is left as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from textleak.matching import recorded
from textleak.matching.recorded import watch
from textleak.matching.replay import plus_product


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = drawn(4, 4, seed=100)


def product(x: Tensor) -> Tensor:
    """Of a tensor (2, 3, 4), as the engine multiplies: row by row."""
    return (x.view(6, 4) @ WEIGHT).view(2, 3, 4)


def several(x: Tensor, y: Tensor) -> Tensor:
    total = product(x) + product(y)
    return product(x * y) + total


def with_a_sum_still_read(x: Tensor, y: Tensor) -> Tensor:
    total = x * 2
    return (total + product(y)) * total


def with_a_product_still_read(x: Tensor, y: Tensor) -> Tensor:
    made = product(x)
    return (made + y * 2) * made.mT.contiguous().mT


def with_a_factor_that_changes(x: Tensor, y: Tensor) -> Tensor:
    factor = x * 3
    made = product(factor)
    factor.mul_(2)
    return (y * 2 + made) * factor


def with_the_sum_as_a_factor(x: Tensor, y: Tensor) -> Tensor:
    total = x * y
    return total + product(total)


def by_a_number(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x * 2, product(y), alpha=3)


def in_another_order(x: Tensor, y: Tensor) -> Tensor:
    return (x * 2).view(4, 6) + (y.view(6, 4) @ WEIGHT).T.contiguous() + (x.view(6, 4) @ WEIGHT).T


def with_itself(x: Tensor, y: Tensor) -> Tensor:
    made = product(x)
    return made + made.view(2, 3, 4) * 1 + y + (made + made)


def to_several_at_once(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).view(1, 6, 4).expand(3, 6, 4).contiguous() + x.view(6, 4) @ WEIGHT


def row_by_row_of_another_length(x: Tensor, y: Tensor) -> Tensor:
    return (x * 2).view(3, 8) + (y.view(6, 4) @ WEIGHT).view(3, 8)


@pytest.mark.parametrize(
    ("function", "joined"),
    [
        (several, 2),
        (with_a_sum_still_read, 0),
        (with_a_product_still_read, 0),
        (with_a_factor_that_changes, 0),
        (with_the_sum_as_a_factor, 0),
        (by_a_number, 0),
        (in_another_order, 0),
        (with_itself, 0),
        (to_several_at_once, 0),
        (row_by_row_of_another_length, 0),
    ],
)
def test_a_product_is_joined_with_its_sum_where_nothing_else_is_read_or_changed(
    function, joined, monkeypatch
):
    found = []

    def noted(*args):
        found.extend(operations := products_added(*args))
        return operations

    products_added = recorded.products_added
    monkeypatch.setattr(recorded, "products_added", noted)
    _, recording = watch(lambda xs: (function(*xs),), [drawn(2, 3, 4, seed=0), drawn(2, 3, 4, seed=1)])
    assert recording is not None
    assert sum(operation.kind is plus_product for operation in found) == joined
    for number in range(2):
        x, y = drawn(2, 3, 4, seed=10 + number), drawn(2, 3, 4, seed=20 + number)
        torch.testing.assert_close(recording.replay([x, y])[0], function(x, y))


def test_a_product_that_is_given_out_is_left_as_it_is():
    def compute(inputs):
        made = product(inputs[0])
        return made, made + inputs[0] * 2

    _, recording = watch(compute, [drawn(2, 3, 4, seed=0)])
    assert recording is not None
    x = drawn(2, 3, 4, seed=1)
    for own, true in zip(recording.replay([x]), compute([x]), strict=True):
        torch.testing.assert_close(own, true)


def test_what_a_product_is_added_to_may_lie_elsewhere():
    total, one = drawn(2, 3, 4, seed=0), drawn(6, 4, seed=1)
    expected = total + (one @ WEIGHT).view(2, 3, 4)
    before = total.clone()
    torch.testing.assert_close(plus_product(total, one, WEIGHT), expected)
    torch.testing.assert_close(plus_product(total, one, WEIGHT, out=torch.empty_like(total)), expected)
    assert torch.equal(total, before)
    assert plus_product(total, one, WEIGHT, out=total) is total
    torch.testing.assert_close(total, expected)
