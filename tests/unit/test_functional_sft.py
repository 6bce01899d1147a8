"""The fused head and loss against hand values, a plain second implementation, and its own promises."""

from __future__ import annotations

import math

import pytest
import torch

from nexus.functional.products import add_product
from nexus.functional.sft import linear_cross_entropy, sft_loss
from nexus.functional.shapes import ShapeError
from nexus.models.head import LogitForm


def reference(hidden, weight, targets, bias, scale, softcap):
    """One token at a time, full logits, autograd does the rest."""
    total = hidden.new_zeros(())
    for row, target in zip(hidden, targets.tolist(), strict=True):
        logits = weight @ row
        if bias is not None:
            logits = logits + bias
        logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        total = total + torch.log(torch.exp(logits).sum()) - logits[target]
    return total


def make(n=11, v=17, d=5, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, d, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(v, d, generator=g).to(dtype).requires_grad_()
    bias = torch.randn(v, generator=g).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(v, (n,), generator=g)


def test_hand_value():
    # logits (ln 1, ln 3), target 1: p = 3/4; the two gradients are p - onehot = (1/4, -1/4) on the logits
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3.0)]], requires_grad=True)
    loss = linear_cross_entropy(hidden=hidden, weight=weight, targets=torch.tensor([1]), bias=None, chunk_size=4)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert hidden.grad.item() == pytest.approx(-0.25 * math.log(3.0), abs=1e-6)
    assert torch.allclose(weight.grad, torch.tensor([[0.25], [-0.25]]))


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 1.5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_a_loop_with_gradients_and_upstream_factor(chunk_size, scale, softcap, with_bias):
    hidden, weight, bias, targets = make()
    bias = bias if with_bias else None
    inputs = [hidden, weight] + ([bias] if with_bias else [])
    expected = reference(hidden, weight, targets, bias, scale, softcap)
    expected_grads = torch.autograd.grad(-1.7 * expected.square(), inputs)
    loss = linear_cross_entropy(
        hidden=hidden,
        weight=weight,
        targets=targets,
        bias=bias,
        chunk_size=chunk_size,
        logit_scale=scale,
        softcap=softcap,
    )
    grads = torch.autograd.grad(-1.7 * loss.square(), inputs)
    assert torch.allclose(loss, expected, rtol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_gradcheck_in_double():
    hidden, weight, bias, targets = make(n=3, v=5, d=2, dtype=torch.float64)

    def run(h, w, b):
        return linear_cross_entropy(hidden=h, weight=w, targets=targets, bias=b, chunk_size=2, softcap=4.0)

    assert torch.autograd.gradcheck(run, (hidden, weight, bias))


def test_frozen_head_gets_no_gradient_and_costs_no_buffer():
    hidden, weight, _, targets = make()
    weight = weight.detach()
    loss = linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=4)
    saved = loss.grad_fn.saved_tensors
    assert [None if t is None else tuple(t.shape) for t in saved] == [(11, 5), None, None]
    loss.backward()
    assert weight.grad is None


def test_backward_twice_with_retained_graph_gives_the_same():
    hidden, weight, _, targets = make()
    loss = 2.0 * linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=4)
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight)[0])


def test_no_targets_is_zero_with_a_graph():
    hidden, weight, _, _ = make()
    empty = torch.zeros(0, dtype=torch.long)
    output = sft_loss(hidden=hidden[:0], weight=weight, bias=None, targets=empty, form=LogitForm(), chunk_size=4)
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_mean_and_every_part_of_the_form():
    hidden, weight, bias, targets = make()
    form = LogitForm(scale=0.5, softcap=2.0, hidden_scale=0.25)
    output = sft_loss(hidden=hidden, weight=weight, bias=bias, targets=targets, form=form, chunk_size=4)
    expected = reference(hidden * 0.25, weight, targets, bias, 0.5, 2.0) / 11
    assert torch.allclose(output.loss, expected, rtol=1e-5)


def test_bfloat16_sums_in_float32():
    """The sum over 64 chunks is as close to the float32 result as a single chunk is."""
    hidden, weight, _, targets = make(n=2048, v=33, d=8)
    exact = linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=2048)
    wanted = torch.autograd.grad(exact, weight)[0]
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    errors = []
    for chunk_size in (32, 2048):
        loss = linear_cross_entropy(hidden=low[0], weight=low[1], targets=targets, bias=None, chunk_size=chunk_size)
        assert loss.dtype == torch.float32
        assert torch.allclose(loss, exact, rtol=5e-3)
        grad = torch.autograd.grad(loss, low[1])[0]
        assert grad.dtype == torch.bfloat16
        errors.append(((grad.float() - wanted).norm() / wanted.norm()).item())
    assert errors[0] < 1.5 * errors[1] + 1e-3
    assert max(errors) < 2e-2


def test_autocast_computes_in_its_dtype_and_returns_the_inputs_dtype():
    hidden, weight, _, targets = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=4)
    exact = linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=4)
    assert loss.item() != exact.item()
    assert torch.allclose(loss, exact, rtol=2e-2)
    assert torch.autograd.grad(loss, weight)[0].dtype == torch.float32


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = linear_cross_entropy(hidden=hidden, weight=weight, targets=torch.tensor([0, 0]), bias=None, chunk_size=1)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert torch.isfinite(hidden.grad).all()


def test_wrong_shapes_and_chunks_are_refused():
    hidden, weight, _, targets = make()
    with pytest.raises(ShapeError, match="weight must be"):
        linear_cross_entropy(hidden=hidden, weight=weight.T, targets=targets, bias=None, chunk_size=4)
    with pytest.raises(ShapeError, match="targets must be"):
        linear_cross_entropy(hidden=hidden, weight=weight, targets=targets[:-1], bias=None, chunk_size=4)
    with pytest.raises(ValueError, match="chunk_size"):
        linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=0)


def test_backward_once_scales_the_head_gradient_where_it_lies():
    hidden, weight, _, targets = make()
    loss = linear_cross_entropy(hidden=hidden, weight=weight, targets=targets, bias=None, chunk_size=4)
    saved = loss.grad_fn.saved_tensors[1]
    place, plain = saved.data_ptr(), saved.clone()
    del saved
    grad = torch.autograd.grad(3.0 * loss, weight)[0]
    assert grad.data_ptr() == place
    assert torch.equal(grad, 3.0 * plain)


@pytest.mark.parametrize("rows", [1, 8191, 8192, 8193, 20_000])
def test_products_of_half_precision_are_added_in_parts(rows):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(7, size, generator=generator).bfloat16() for size in (rows, 3))
    total = torch.randn(rows, 3, generator=generator)
    expected = total + (left.T @ right).float()
    add_product(total, left, right, first=False)
    assert torch.allclose(total, expected, rtol=1e-2, atol=5e-2)
