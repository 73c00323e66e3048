"""What other people's tools do to the layers of this library: views behind a layer, frozen
networks, weights that hooks and subclasses change, clones, tracing. A result is right, or refused
in words."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nsl_repro.nsl.convert import to_nsl
from nsl_repro.nsl.dynamic import DynamicNSLConv2d, dynamic_conv2d
from nsl_repro.nsl.sphere import SphereConv2d
from nsl_repro.nsl.static import StaticNSLConv2d

LAST = torch.channels_last


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("make", (DynamicNSLConv2d, StaticNSLConv2d, SphereConv2d))
@pytest.mark.parametrize("groups", (1, 3))
def test_a_layer_lies_in_memory_as_conv2d(make, groups, dtype):
    "Contiguous and channels-last images and filters."
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    layer, plain = (m(3, 6, 3, groups=groups, dtype=dtype) for m in (make, nn.Conv2d))
    for formats in [(torch.contiguous_format,) * 2, (LAST, LAST), (LAST, torch.contiguous_format)]:
        image = x.to(memory_format=formats[0])
        strides = []
        for m in (layer, plain):
            m.to(memory_format=torch.contiguous_format).to(memory_format=formats[1])
            strides.append(m(image).stride())
        assert strides[0] == strides[1]
    assert layer.to(memory_format=torch.contiguous_format)(x).view(2, -1).shape == (2, 96)


@pytest.mark.parametrize("backend", ("auto", "reference"))
def test_a_view_may_follow_a_dynamic_layer(backend):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    model = to_nsl(net, "dynamic_uns").model
    x, w, M = torch.randn(2, 3, 7, 7), torch.randn(4, 3, 3, 3), torch.rand(2, 9, 5, 5)
    model[2].backend = backend
    assert torch.equal(model(x).view(2, -1), model(x).flatten(1))
    y = dynamic_conv2d(x, w, M, backend=backend)
    assert y.is_contiguous() and dynamic_conv2d(x, w.to(memory_format=LAST), M).is_contiguous(
        memory_format=LAST
    )
    assert F.conv2d(x, w.to(memory_format=LAST)).is_contiguous(memory_format=LAST)
