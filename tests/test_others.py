"""What other people's tools do to the layers of this library: views behind a layer, frozen
networks, weights that hooks and subclasses change, clones, tracing. A result is right, or refused
in words."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models import resnet18

from nsl_repro.nsl.convert import KINDS, similarity_parameters, to_nsl
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


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def moved(model, before):
    return [name for name, b in model.named_buffers() if not torch.equal(b, before[name])]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_frozen_moves(kind):
    "Running statistics stay through training, also in a copy; the output is that of evaluation."
    options = dict(hidden=4, batchnorm=True) if "dynamic" in kind else {}
    net = resnet18(num_classes=5)
    model = to_nsl(net, kind, "layer1.*", **options).model
    similarity_parameters(model, freeze=True)
    for m in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = buffers(m)
        m.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
        own = [name for name in before if ".predictor." in name]
        assert set(moved(m, before)) <= set(own) and (own == [] or moved(m, before))
    again = similarity_parameters(model, freeze=True)  # twice is once
    assert len(model.bn1._forward_pre_hooks) == 1 and len(again) > 0
    model.requires_grad_(True).train()(torch.randn(2, 3, 32, 32))
    assert len(moved(model, before)) >= 60  # trained again: all of the twenty norms go on


def test_nothing_frozen_moves_in_other_norms():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, track_running_stats=True),
        old_spectral_norm(nn.Conv2d(4, 4, 3)),
        spectral_norm(nn.Conv2d(4, 4, 3)),
        nn.BatchNorm2d(4, affine=False),
        nn.SyncBatchNorm(4).eval(),
    )
    net(torch.randn(2, 3, 12, 12))
    model = to_nsl(net, where="0", inplace=True).model
    similarity_parameters(model, freeze=True)
    before = buffers(model)
    assert len(before) == 13
    for _ in range(2):
        model.train()(torch.randn(2, 3, 12, 12)).sum().backward()
    assert moved(model, before) == []
