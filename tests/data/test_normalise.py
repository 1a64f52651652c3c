"""Normalised batches are the plain formula's, and memory is used again only when nobody can see it any more."""

import pytest
import torch

from mixtune.data.normalise import MAX_SPARE, Normalise, RecycledMemory

pytestmark = pytest.mark.arithmetic

MEAN, STD = (0.3, 0.5, 0.1), (0.2, 0.03, 0.6)


def formula(pixels):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) * 255 for x in (MEAN, STD))
    return (pixels.float() - mean) / std


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (5, 80, 88, 3)])
def test_the_plain_formula_to_the_bit(shape):
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte().permute(0, 3, 1, 2)
    normalise = Normalise(MEAN, STD, torch.device("cpu"))
    for pixels in (x, x.float(), x.contiguous(), x.float().contiguous()):
        before = pixels.clone()
        made = normalise(pixels)
        assert torch.equal(made, formula(x))
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(pixels, before)


def test_memory_is_used_again_when_nothing_refers_to_it():
    memory = RecycledMemory()
    first = memory.empty((4, 8))
    place = first.data_ptr()
    del first
    assert memory.empty((2, 8)).data_ptr() == place  # the same memory holds less
    assert memory.empty((4, 9)).shape == (4, 9)  # and makes room for more


@pytest.mark.parametrize(
    "hold", [lambda x: x[1:], lambda x: x.numpy(), lambda x: x.detach().permute(1, 0), lambda x: x.untyped_storage()]
)
def test_a_view_keeps_its_memory(hold):
    memory = RecycledMemory()
    x = memory.empty((4, 8))
    place, held = x.data_ptr(), hold(x)
    del x
    assert memory.empty((4, 8)).data_ptr() != place
    del held
    assert place in {memory.empty((4, 8)).data_ptr() for _ in range(MAX_SPARE)}


def test_a_graph_keeps_its_memory():
    """What autograd saved for the backward pass is the batch itself."""
    memory, weight = RecycledMemory(), torch.ones(8, requires_grad=True)
    x = memory.empty((4, 8)).fill_(2.0)
    loss = (x * weight).sum()
    del x
    memory.empty((4, 8)).fill_(-100.0)
    loss.backward()
    assert torch.equal(weight.grad, torch.full((8,), 8.0))


def test_little_is_kept():
    memory = RecycledMemory()
    many = [memory.empty((10,)) for _ in range(3 * MAX_SPARE)]
    del many
    assert len(memory._spare) == MAX_SPARE
