import pytest
import torch
from torch.nn import functional as F

from dasnet_lightning.functional.pooling import max_pool_with_switches, unpool


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((8, 12), {}),
        ((7, 9), {"ceil_mode": True}),
        ((7, 9), {"ceil_mode": False}),
        ((1, 1), {"ceil_mode": True}),
        ((6, 5), {"kernel": 3, "stride": 1, "padding": 1}),
        ((6, 5), {"kernel": 3, "stride": 2, "padding": 1}),
    ],
)
def test_pool_and_unpool_equal_torch(size, options, dtype, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, *size), generator=generator).to(dtype).contiguous(memory_format=layout)
    shape = {"kernel": 2, "stride": 2, "padding": 0} | {k: v for k, v in options.items() if k != "ceil_mode"}
    pooled, switches = max_pool_with_switches(x, **options)
    expected, address = F.max_pool2d(
        x,
        shape["kernel"],
        shape["stride"],
        shape["padding"],
        ceil_mode=options.get("ceil_mode", False),
        return_indices=True,
    )
    assert torch.equal(pooled, expected)
    assert switches.dtype == torch.uint8
    assert int(switches.max()) < shape["kernel"] ** 2

    values = torch.randn(pooled.shape, generator=generator).to(dtype)
    flat = torch.zeros(2, 3, size[0] * size[1], dtype=dtype)
    for place in range(address[0, 0].numel()):  # one window after the other, so that the last one stays
        flat.scatter_(2, address.flatten(2)[..., place : place + 1], values.flatten(2)[..., place : place + 1])
    assert torch.equal(unpool(values, switches, size, **shape), flat.view_as(x))


def test_unpool_equals_max_unpool2d_at_the_papers_sizes():
    x = torch.randn(1, 2, 40, 40)
    pooled, address = F.max_pool2d(x, 2, 2, return_indices=True)
    assert torch.equal(unpool(pooled, max_pool_with_switches(x)[1], (40, 40)), F.max_unpool2d(pooled, address, 2, 2))


def test_of_equal_values_the_first_counts():
    pooled, switches = max_pool_with_switches(torch.zeros(1, 1, 4, 4))
    assert torch.equal(switches, torch.zeros_like(switches))
    assert unpool(pooled + 1, switches, (4, 4))[0, 0].tolist() == [
        [1, 0, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 1, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize(("size", "shape"), [((4, 6), (2, 2, 0)), ((5, 3), (2, 2, 0)), ((4, 4), (3, 1, 1))])
def test_gradient_of_unpooling_is_exact(size, shape):
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    pooled, switches = max_pool_with_switches(x, *shape, ceil_mode=shape[2] == 0)
    values = torch.randn_like(pooled).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: unpool(v, switches, size, *shape), (values,))


def test_gradient_of_pooling_flows_to_the_maximum_only():
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    pooled, switches = max_pool_with_switches(x)
    pooled.sum().backward()
    assert torch.equal(x.grad, unpool(torch.ones_like(pooled), switches, (4, 4)).detach())


def test_the_unpooled_map_keeps_the_memory_layout():
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    pooled, switches = max_pool_with_switches(x)
    assert unpool(pooled, switches, (6, 6)).is_contiguous(memory_format=torch.channels_last)
