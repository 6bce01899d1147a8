"""Shapes, masks, log-probabilities and entropy."""

from __future__ import annotations

import math

import pytest
import torch

from nexus.errors import NexusError
from nexus.functional.logprobs import token_logprobs
from nexus.functional.masking import masked_mean, masked_sum
from nexus.functional.shapes import ShapeError, check_shapes


def test_check_shapes_returns_sizes_and_takes_one_or_many_lists():
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    assert check_shapes("B T", a=a, b=b) == {"B": 2, "T": 3}
    assert check_shapes("B T, T 4, B", a=a, w=torch.zeros(3, 4), s=torch.zeros(2)) == {"B": 2, "T": 3}
    assert check_shapes("B T, V", a=a, bias=None) == {"B": 2, "T": 3}


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        ("B T", {"a": (2, 3), "b": (2, 4)}, r"b must be \[B, T\] with T = 3, got \[2, 4\]"),
        ("B T", {"a": (2,)}, r"a must be \[B, T\], got \[2\]"),
        ("B 4", {"a": (2, 3)}, r"with 4 = 4, got \[2, 3\]"),
    ],
)
def test_check_shapes_names_tensor_and_dimension(spec, shapes, message):
    with pytest.raises(ShapeError, match=message) as caught:
        check_shapes(spec, **{name: torch.zeros(shape) for name, shape in shapes.items()})
    assert isinstance(caught.value, NexusError)
    assert caught.value.status == 70


def test_check_shapes_refuses_a_wrong_number_of_lists():
    with pytest.raises(ValueError, match="2 shapes given for 1"):
        check_shapes("B, T", a=torch.zeros(2))


def test_masked_values_by_hand():
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_sum(values=values, mask=mask).item() == 5.0
    assert masked_mean(values=values, mask=mask).item() == 2.5
    assert masked_sum(values=values, mask=mask, dim=1).tolist() == [5.0, 0.0]
    assert masked_mean(values=values, mask=mask, dim=1).tolist() == [2.5, 0.0]


def test_padding_has_no_influence_even_if_it_is_nan():
    values = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    mean = masked_mean(values=values, mask=torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ShapeError):
        masked_sum(values=torch.zeros(2, 3), mask=torch.ones(3, dtype=torch.bool))


def test_token_logprobs_by_hand_and_in_float32():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    assert token_logprobs(logits=logits, tokens=torch.tensor([1, 0])).tolist() == pytest.approx(
        [math.log(0.75), math.log(0.5)]
    )
    assert token_logprobs(logits=logits.bfloat16(), tokens=torch.tensor([1, 0])).dtype == torch.float32
