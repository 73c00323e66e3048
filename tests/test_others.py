"""What other people's tools do to the layers of this library: views behind a layer, frozen
networks, weights that hooks and subclasses change, clones, tracing. A result is right, or refused
in words."""

import copy
import os
import pickle
from functools import partial
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
import torchvision
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import DeformConv2d

from nsl_repro.nsl.convert import KINDS, similarity_parameters, to_nsl
from nsl_repro.nsl.dynamic import DynamicNSLConv2d, dynamic_conv2d
from nsl_repro.nsl.predictor import SharedPredictor
from nsl_repro.nsl.sphere import SphereConv2d
from nsl_repro.nsl.folding import fold
from nsl_repro.nsl.static import NeuralSimilarity, StaticNSLConv2d

LAST = torch.channels_last


class Own(nn.Conv2d):
    "Might do anything in its forward."


def pruned(conv):
    return prune.random_unstructured(conv, "weight", 0.5)


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
    model = to_nsl(net, where="0").model
    similarity_parameters(model, freeze=True)
    before = buffers(model)
    assert len(before) == 13
    for _ in range(2):
        model.train()(torch.randn(2, 3, 12, 12)).sum().backward()
    assert moved(model, before) == []


def stir(model, by=0.3):
    "At the identity there is little to fold."
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, NeuralSimilarity):
                m.M_s.add_(by * torch.randn_like(m.M_s))
    return model


def test_modes_survive_a_copy():
    "A traced network is rebuilt by deepcopy, and was in training mode then."
    net = resnet18(num_classes=5)
    part = create_feature_extractor(net, ["layer1"]).eval()
    part.get_submodule("layer1.0.bn1").train()
    x = torch.randn(2, 3, 32, 32)
    model = to_nsl(part, "static_uns").model
    modes = {name: m.training for name, m in part.named_modules()}
    for made in (model, fold(model)):
        assert modes.items() <= {name: m.training for name, m in made.named_modules()}.items()
    torch.testing.assert_close(model.eval()(x), part.eval()(x))


@pytest.mark.parametrize("inplace", (False, True))
@pytest.mark.parametrize("how", (old_weight_norm, old_spectral_norm, pruned))
def test_a_weight_that_a_hook_computes(how, inplace):
    "Left alone with a sentence, and the network can be copied after it has run."
    net = nn.Sequential(how(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    y = net(x)
    model, converted, skipped = to_nsl(net, inplace=inplace)
    assert converted == ["1"] and "computed by a hook (pruning, an old" in skipped["0"]
    torch.testing.assert_close(model(x), y)
    assert type(fold(model)[1]) is nn.Conv2d
    torch.testing.assert_close(fold(model)(x), y)


@pytest.mark.parametrize("how", (old_weight_norm, old_spectral_norm, pruned))
@pytest.mark.parametrize("kind", ("diagonal", "unconstrained"))
def test_a_layer_folds_with_the_weight_that_a_hook_computes(how, kind):
    layer = how(stir(StaticNSLConv2d(3, 4, 3, kind=kind))).eval()
    x = torch.randn(2, 3, 8, 8)
    y, folded = layer(x), fold(layer)
    assert type(folded) is nn.Conv2d and sorted(folded.state_dict()) == ["bias", "weight"]
    for _ in range(2):
        torch.testing.assert_close(folded(x), y)
    assert (layer.weight != folded.weight).any()


@pytest.mark.parametrize("make", (nn.Conv2d, Own))
@pytest.mark.parametrize("kind", ("static_dns", "static_uns"))
def test_one_weight_stays_one_weight(make, kind):
    net = nn.Sequential(make(4, 4, 3, padding=1), nn.ReLU(), make(4, 4, 3, padding=1, stride=2))
    net[2].weight = net[0].weight
    x = torch.randn(2, 4, 8, 8)
    model = stir(to_nsl(net, kind).model)
    assert len(similarity_parameters(model)) == 1
    folded = fold(model)
    assert folded[0].weight is folded[2].weight
    assert torch.equal(model[0].similarity.M_s, model[2].similarity.M_s) if make is nn.Conv2d else 1
    torch.testing.assert_close(folded(x), model(x))


def test_every_convolution_is_named():
    "Also those of other libraries, which are no subclasses of PyTorch's."
    net = nn.Sequential(nn.Conv2d(3, 4, 3), DeformConv2d(4, 4, 3))
    assert to_nsl(net).skipped == {"1": "it is a DeformConv2d, not a Conv2d"}
    with pytest.raises(ValueError, match="1 because it is a DeformConv2d, not a Conv2d"):
        to_nsl(net[1])


def test_a_converted_subclass_is_saved_by_its_numbers():
    "PyTorch does not pickle parametrized layers: by state_dict, or folded."
    net = nn.Sequential(Own(3, 4, 3), nn.Conv2d(4, 4, 3))
    model = to_nsl(net).model
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(model)
    to_nsl(net).model.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 7, 7)
    torch.testing.assert_close(pickle.loads(pickle.dumps(fold(model)))(x), model(x))


class Masked(nn.Conv2d):
    "Sees no tap after the center."

    def forward(self, x):
        self.weight.data[..., 2:] = 0
        return super().forward(x)


class Short(nn.Conv2d):
    "A maximal norm for each filter, in training."

    def forward(self, x):
        if self.training:
            self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1)
        return super().forward(x)


class Inside(nn.Conv2d):
    "Looks up its weight where a parametrization has none."

    def forward(self, x):
        return self._conv_forward(x, self._parameters["weight"], self.bias)


class Hidden(nn.Conv2d):
    "Has its weight twice."

    def __init__(self, *args):
        super().__init__(*args)
        self.copy = nn.Parameter(self.weight.detach().clone())

    def forward(self, x):
        return self._conv_forward(x, self.copy, self.bias)


class Harmless(nn.Conv2d):
    "Standardizes its weight, and draws random numbers."

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.dropout(self._conv_forward(x, w, self.bias), training=self.training)


def with_hook(conv, hook, after=False):
    register = conv.register_forward_hook if after else conv.register_forward_pre_hook
    register(hook)
    return conv


def mask_by_hook(conv, *_):
    conv.weight.data[..., 2:] = 0


def only_look(conv, args):
    return None


CHANGED = {
    "mask": lambda: Masked(3, 4, 3),
    "norm": lambda: Short(3, 4, 3),
    "hook": lambda: with_hook(nn.Conv2d(3, 4, 3), mask_by_hook),
    "hook behind": lambda: with_hook(nn.Conv2d(3, 4, 3), mask_by_hook, after=True),
    "hook of a subclass": lambda: with_hook(Own(3, 4, 3), mask_by_hook),
}


@pytest.mark.parametrize("kind", ("static_dns", "static_uns"))
@pytest.mark.parametrize("case", CHANGED)
def test_a_layer_that_changes_its_weight_is_left_alone(case, kind):
    torch.manual_seed(0)
    net = nn.Sequential(CHANGED[case](), nn.Conv2d(4, 4, 3)).train()
    state = torch.random.get_rng_state()
    before = net[0].weight.clone()
    model, converted, skipped = to_nsl(net, kind)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(before, net[0].weight)
    assert converted == ["1"] and "is changed by its forward or a hook" in skipped["0"]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), net(x))
    torch.testing.assert_close(model(x), net(x))  # after the change as well


@pytest.mark.parametrize("make", (Inside, Hidden))
def test_a_layer_that_a_similarity_does_not_reach_is_left_alone(make):
    net = nn.Sequential(make(3, 4, 3), nn.Conv2d(4, 4, 3))
    _, converted, skipped = to_nsl(net)
    assert converted == ["1"] and "its forward" in skipped["0"]


def test_harmless_subclasses_and_hooks_are_converted():
    net = nn.Sequential(Harmless(3, 4, 3), with_hook(nn.Conv2d(4, 4, 3), only_look), Own(4, 4, 3))
    assert len(to_nsl(net).converted) == 3


def test_fold_refuses_what_would_differ():
    layer = with_hook(StaticNSLConv2d(3, 4, 3), mask_by_hook)
    with pytest.raises(ValueError, match="a StaticNSLConv2d that has a hook that changes its wei"):
        fold(nn.Sequential(layer))
    masked = parametrize.register_parametrization(Masked(3, 4, 3), "weight", NeuralSimilarity(3))
    with pytest.raises(ValueError, match="a Masked that changes its weight in its forward"):
        fold(masked)
    layer = StaticNSLConv2d(3, 4, 3)
    add_hook_to_module(layer, ModelHook())
    with pytest.raises(ValueError, match="has a forward of its own on the instance"):
        fold(layer)
    remove_hook_from_module(layer)
    del layer.forward
    assert type(fold(layer)) is nn.Conv2d


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_on_the_instance_is_left_alone(kind):
    "Another class would have no effect there; without the hook it has."
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    add_hook_to_module(net[0], ModelHook())
    model, converted, skipped = to_nsl(net, kind)
    assert converted == ["1"] and "its forward was replaced on the instance" in skipped["0"]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), net(x))
    add_hook_to_module(model[1], ModelHook())  # after the conversion: nothing is lost
    model(x).sum().backward()
    assert all(p.grad is not None for p in similarity_parameters(model))


DOZEN = [
    "timm/resnet18",
    "timm/tf_efficientnet_lite0",
    "timm/mobilenetv3_small_050",
    "timm/resnetv2_50",
    "timm/repvgg_a0",
    "timm/convnext_atto",
    "timm/regnetx_002",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
]
MORE = {
    "timm": """efficientnet_lite0 tf_mixnet_s mixnet_s mnasnet_050 fbnetc_100 ghostnet_050
        hardcorenas_a lcnet_050 tinynet_e mobilenetv2_050 dla34 res2net50_26w_4s resnest14d
        skresnet18 seresnet50 resnext50_32x4d nf_resnet50 dm_nfnet_f0 resnetv2_50x1_bit
        gernet_s rexnet_100 selecsls42 cspresnet50 vovnet39a hrnet_w18_small xception41
        inception_v3 inception_v4 vgg11_bn mobileone_s0 fastvit_t8 repghostnet_050
        edgenext_xx_small poolformer_s12 convmixer_768_32 regnety_002 eca_nfnet_l0
        ese_vovnet19b_dw darknet53 halonet26t lambda_resnet26t bat_resnext26ts
        visformer_tiny pit_ti_224 coat_tiny levit_128s twins_svt_small efficientformer_l1
        mobilevit_xxs cait_xxs24_224 densenet121 dpn68 vit_tiny_patch16_224 convnextv2_atto
        repvit_m0_9 tiny_vit_5m_224 mobilenetv4_conv_small efficientvit_b0 shvit_s1
        lcnet_100""",
    "torchvision": """alexnet vgg11 vgg16_bn googlenet inception_v3 resnet50 resnext50_32x4d
        wide_resnet50_2 mnasnet0_5 mobilenet_v2 regnet_x_400mf regnet_y_400mf convnext_tiny
        efficientnet_v2_s swin_t maxvit_t resnet18 squeezenet1_0 shufflenet_v2_x1_0
        mobilenet_v3_large mnasnet1_0 densenet169 efficientnet_b1 regnet_y_800mf swin_v2_t
        vit_b_16""",
}
SOAK = os.environ.get("NSL_SOAK") == "1"
ALL = [f"{library}/{name}" for library, names in MORE.items() for name in names.split()]


def model_of(name):
    library, name = name.split("/")
    if library == "torchvision":
        return torchvision.models.get_model(name, num_classes=5, **NO_AUX.get(name, {}))
    return pytest.importorskip("timm").create_model(name, num_classes=5)


NO_AUX = dict.fromkeys(("googlenet", "inception_v3"), dict(aux_logits=False, init_weights=False))
LARGE = dict(
    inception_v3=160, pit_ti_224=224, coat_tiny=224, cait_xxs24_224=224, swin_t=224, vit_b_16=224
)
LARGE |= dict(swin_v2_t=224, vit_tiny_patch16_224=224, tiny_vit_5m_224=224, shvit_s1=224)
LARGE |= dict(levit_128s=224, efficientformer_l1=224, maxvit_t=224, visformer_tiny=224)
LARGE |= dict(
    twins_svt_small=224, halonet26t=256, bat_resnext26ts=256, inception_v4=160, fastvit_t8=128
)


@pytest.mark.parametrize("name", DOZEN + (ALL if SOAK else []))
def test_any_model_converts_trains_and_folds(name):
    "As before, whatever is refused elsewhere."
    torch.manual_seed(0)
    net = model_of(name).eval()
    size = LARGE.get(name.split("/")[1], 64)
    x = torch.randn(2, 3, size, size)
    model, converted, skipped = to_nsl(net, "static_uns")
    with torch.no_grad():
        y = net(x)
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5 * y.abs().max().item())
    assert not [why for why in skipped.values() if "forward" in why or "hook" in why]
    some = similarity_parameters(model, freeze=True)
    before = buffers(model)
    model.train()(x).sin().mean().backward()
    assert moved(model, before) == [] and all(p.grad is not None for p in some)
    nn.utils.clip_grad_norm_(some, 0.01)
    torch.optim.SGD(some, lr=0.1).step()
    learned = stir(model, 0.03).eval()
    with torch.no_grad():
        y, folded = learned(x), fold(learned)
        torch.testing.assert_close(folded(x), y, rtol=1e-3, atol=1e-4 * y.abs().max().item())
    assert list(folded.state_dict()) == list(net.state_dict())


class Two(nn.Module):
    "Two layers and their core, registered last."

    def __init__(self, **options):
        super().__init__()
        core = SharedPredictor(4, hidden=5, batchnorm="hidden", **options)
        self.first = DynamicNSLConv2d(3, 4, 3, predictor=core)
        self.second = DynamicNSLConv2d(4, 4, 3, predictor=core)
        self.core = core

    def forward(self, x):
        return self.second(self.first(x).relu())


def clone(module, memo):
    "By copies of `__dict__`, part by part, with parameters that are functions of the old ones."
    twin = module.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    for kind in ("_parameters", "_buffers"):
        twin.__dict__[kind] = {}
        for name, t in getattr(module, kind).items():
            if t is not None and id(t) not in memo:
                memo[id(t)] = t.clone()
            twin.__dict__[kind][name] = None if t is None else memo[id(t)]
    parts = {n: m if m is None else clone(m, memo) for n, m in module._modules.items()}
    twin.__dict__["_modules"] = parts
    return twin


SHARED = [{}, dict(head="shared"), dict(adapters="size"), dict(adapt="fc", kind="unconstrained")]


@pytest.mark.parametrize("options", SHARED)
def test_a_clone_has_its_own_core(options):
    "What is changed in a clone is seen by its layers, and the original stays."
    net = Two(**options).eval()
    x = torch.randn(2, 3, 9, 9)
    y = net(x)
    twin = clone(net, {})
    torch.testing.assert_close(twin(x), y)
    twin.core.m1.weight.add_(1.0)  # a step of an inner loop, seen by the layers
    changed = twin(x)
    assert not torch.allclose(changed, y) and torch.equal(net(x), y)
    changed.sum().backward()
    assert net.core.m1.weight.grad.abs().max() > 0
    reference = copy.deepcopy(net)
    with torch.no_grad():
        reference.core.m1.weight.add_(1.0)
    torch.testing.assert_close(reference(x), changed)


@pytest.mark.parametrize("options", SHARED)
def test_replicas_of_data_parallel_use_their_own_core(options):
    "As `torch.nn.parallel.replicate` links them, on one device."
    net = Two(**options)
    modules = list(net.modules())
    index = {m: i for i, m in enumerate(modules)}
    replicas = [m._replicate_for_data_parallel() for m in modules]
    for m, replica in zip(modules, replicas):
        for name, part in m._modules.items():
            replica._modules[name] = None if part is None else replicas[index[part]]
    assert replicas[0].first.predictor.core is replicas[0].core is not net.core


@pytest.mark.parametrize("options", SHARED)
def test_a_core_is_listed_and_saved_once(options):
    net, other = Two(**options), Two(**options)
    state = net.state_dict()
    assert not [name for name in state if "predictor.core" in name]
    assert [n for n in state if n.startswith("core.m1")]
    assert {n for n, _ in net.named_parameters()} <= set(state)
    assert not [name for name, _ in net.named_modules(remove_duplicate=False) if "r.core" in name]
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        x = torch.randn(2, 3, 9, 9)
        torch.testing.assert_close(other.eval()(x), net.eval()(x))
    with pytest.raises(RuntimeError, match="core.m1.weight"):
        other.load_state_dict({n: t for n, t in state.items() if n != "core.m1.weight"})


LAYERS = {
    "static": lambda: StaticNSLConv2d(3, 4, 3, kind="unconstrained"),
    "sphere": lambda: SphereConv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "sphere sigmoid": lambda: SphereConv2d(3, 4, 3, operator="learnable_sigmoid"),
    "dynamic dns": lambda: DynamicNSLConv2d(3, 4, 3, padding=1),
    "dynamic uns": lambda: DynamicNSLConv2d(3, 4, 3, kind="unconstrained", stride=2),
    "subclass": lambda: to_nsl(Own(3, 4, 3)).model,
}


@pytest.mark.parametrize("case", LAYERS)
def test_symbolic_tracing(case):
    "A layer is one call in the graph, and learns there."
    net = nn.Sequential(LAYERS[case](), nn.ReLU())
    traced = torch.fx.symbolic_trace(net)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), net(x))
    assert torch.equal(create_feature_extractor(net, {"0": "y"})(x)["y"], net[0](x))
    traced(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_feature_extractors_of_a_converted_network(kind):
    options = dict(hidden=4) if "dynamic" in kind else {}
    net = to_nsl(resnet18(num_classes=5), kind, "layer*", **options).model.eval()
    x = torch.randn(1, 3, 32, 32)
    part = create_feature_extractor(net, {"layer2": "y"}).eval()
    y = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))
    torch.testing.assert_close(part(x)["y"], y)


@pytest.mark.parametrize("case", LAYERS)
def test_export_for_any_batch(case):
    net, x = nn.Sequential(LAYERS[case](), nn.ReLU()).eval(), torch.randn(4, 3, 8, 8)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    for n in (2, 4, 7):
        images = torch.randn(n, 3, 8, 8)
        torch.testing.assert_close(program.module()(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_onnx_for_any_batch(case, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    net, x = nn.Sequential(LAYERS[case](), nn.ReLU()).eval(), torch.randn(4, 3, 8, 8)
    file = tmp_path / "net.onnx"
    names = dict(input_names=["x"], output_names=["y"])
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(net, (x,), file, dynamo=False, dynamic_axes=axes, **names)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for n in (1, 4, 7):
        images = torch.randn(n, 3, 8, 8)
        (y,) = session.run(None, {"x": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_scripting_is_for_folded_networks(case):
    "The page says that no layer can be scripted; a trace can be had, and a folded static layer."
    layer, x = LAYERS[case]().eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.jit.script(layer)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))
    if case == "static":
        torch.testing.assert_close(torch.jit.script(fold(layer))(x), layer(x))


class Adapted(nn.Module):
    "A convolution with a low-rank adapter, as peft names its parts."

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Conv2d(3, 4, 3)
        self.lora_A = nn.ModuleDict({"default": nn.Conv2d(3, 2, 3)})
        self.lora_B = nn.ModuleDict({"default": nn.Conv2d(2, 4, 1)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_adapters_are_left_alone():
    _, converted, skipped = to_nsl(Adapted())
    assert converted == ["base_layer"]
    assert skipped["lora_A.default"] == "it belongs to an adapter (LoRA)"


class Reader(nn.Module):
    "Uses the weights of its convolutions, by name and in a loop, as some models do."

    def __init__(self, loop):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)])
        self.own, self.loop = nn.Conv2d(3, 3, 3, padding=1), loop

    def forward(self, x):
        if self.loop:
            for conv in self.convs:
                x = F.conv2d(x, conv.weight, conv.bias, padding=1)
            return x
        return F.conv2d(x, self.own.weight, self.own.bias, padding=1)

    @torch.no_grad()
    def merged(self):
        return self.own.weight + self.convs[0].weight


@pytest.mark.parametrize("loop", (False, True))
def test_a_parent_that_reads_a_weight(loop):
    net, x = Reader(loop), torch.randn(2, 3, 6, 6)
    model = stir(to_nsl(net, "static_uns").model)
    layers = nn.Sequential(*model.convs) if loop else model.own
    torch.testing.assert_close(model(x), layers(x), rtol=1e-4, atol=1e-5)
    assert (model(x) - net(x)).abs().max() > 0.01
    model(x).sum().backward()
    read = [m for m in layers.modules() if isinstance(m, NeuralSimilarity)]
    assert read and all(m.M_s.grad.any() for m in read)
    folded = fold(model)
    assert type(folded.own) is nn.Conv2d and {*folded.state_dict()} == {*net.state_dict()}
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded.merged(), model.merged())
    with pytest.raises(ValueError, match="3 because its weight is read by the forward of Reader"):
        to_nsl(net, "dynamic_dns")


def test_a_dynamic_layer_is_read_by_nobody():
    class Merging(Reader):
        def forward(self, x):
            return self.own(x)

    model, converted, _ = to_nsl(Merging(False), "dynamic_dns")
    assert pickle.dumps(model.merged)
    for merged in (model.merged, copy.deepcopy(model).merged):
        with pytest.raises(ValueError, match="merged of Merging must read weights that tell"):
            merged()
    assert len(converted) == 3 and model(torch.randn(1, 3, 5, 5)).shape == (1, 3, 5, 5)


def test_branches_are_merged_with_their_similarity():
    "timm merges branches by their weights: of a static similarity, folded or not."
    utils = pytest.importorskip("timm.utils.model")
    net = model_of("timm/repvgg_a0").eval()
    x = torch.randn(1, 3, 64, 64)
    model = stir(to_nsl(net, "static_uns").model)
    for start in (model, fold(model)):
        with torch.no_grad():
            merged, y = utils.reparameterize_model(start)(x), model(x)
        torch.testing.assert_close(merged, y, rtol=1e-3, atol=1e-4 * y.abs().max().item())
    with pytest.raises(ValueError, match="dynamic similarity changes with the input"):
        utils.reparameterize_model(to_nsl(net, "dynamic_dns").model)


def test_a_patch_embedding_is_resized_with_its_similarity():
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    model = stir(to_nsl(net, "static_dns").model)
    folded, x = fold(model), torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        for m in (net, model, folded):
            m.set_input_size(img_size=(128, 128), patch_size=(8, 8))
        torch.testing.assert_close(model(x), folded(x), rtol=1e-4, atol=1e-5)
        assert (model(x) - net(x)).abs().max() > 1e-3


class Merged(Adapted):
    "Merges and takes back as peft does."

    def __init__(self):
        super().__init__()
        self.lora_A["default"].bias = self.lora_B["default"].bias = None

    def get_base_layer(self):
        return self.base_layer

    def delta(self):
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        return torch.einsum("or,rikl->oikl", b.flatten(1), a)

    def merge(self, safe=False):
        base = self.get_base_layer()
        if safe:
            weight = base.weight.data.clone()
            weight += self.delta()
            base.weight.data = weight
        else:
            base.weight.data += self.delta()
        self.forward = base.forward

    def unmerge(self):
        weight = self.get_base_layer().weight
        weight.data -= self.delta()


@pytest.mark.parametrize("kind", ("static_dns", "static_uns"))
@pytest.mark.parametrize("safe", (False, True))
def test_an_adapter_is_merged_after_folding(kind, safe):
    "Before, what is written would be lost."
    net = nn.Sequential(Merged())
    model, x = stir(to_nsl(net, kind).model), torch.randn(2, 3, 6, 6)
    y = model(x)
    for call in (partial(model[0].merge, safe), model[0].unmerge):
        with pytest.raises(ValueError, match="must write into plain weights.*fold"):
            call()
    assert torch.equal(model(x), y)
    folded = fold(model)
    torch.testing.assert_close(folded(x), y, rtol=1e-4, atol=1e-5)
    folded[0].merge(safe)
    torch.testing.assert_close(folded(x), y, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_peft():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    net = peft.get_peft_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), config)
    model, x = stir(to_nsl(net, "static_uns").model).eval(), torch.randn(2, 3, 6, 6)
    y = model(x)
    for safe in (False, True):
        with pytest.raises(ValueError, match="fold"):
            copy.deepcopy(model).merge_and_unload(safe_merge=safe)
    merged = fold(model).merge_and_unload()
    torch.testing.assert_close(merged(x), y, rtol=1e-4, atol=1e-5)


def read_it(x, c):
    return F.conv2d(x, c.weight, c.bias)


def read_through(x, c):
    return read_it(x, c)


def fuse_conv(conv):
    fused = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size).requires_grad_(False)
    fused.weight.copy_(conv.weight.clone().mul_(2))
    fused.bias.copy_(conv.bias * 2)
    return fused


class One(nn.Module):
    "A convolution whose weight is read or written in ways that are told by a subclass."

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.c(x)


class ByHelper(One):
    def forward(self, x):
        return read_through(x, self.c)


class ByGetattr(One):
    def forward(self, x):
        return F.conv2d(x, getattr(self.c, "weight"), self.c.bias)  # noqa: B009


class ByProperty(One):
    @property
    def kernel(self):
        return self.c.weight

    def forward(self, x):
        return F.conv2d(x, self.kernel, self.c.bias)


class ByMethod(One):
    def kernel(self):
        return self.c.weight

    def forward(self, x):
        return F.conv2d(x, self.kernel(), self.c.bias)


class ByList(One):
    def __init__(self):
        super().__init__()
        self.all = [self.c]

    def forward(self, x):
        return F.conv2d(x, self.all[0].weight, self.c.bias)


def by_instance():
    net = One()
    net.forward = lambda x: read_it(x, net.c)
    return net


def by_bound_instance():
    net = One()
    net.forward = MethodType(ByHelper.forward, net)
    return net


READ = [ByHelper, ByGetattr, ByProperty, ByMethod, ByList, by_bound_instance]


@pytest.mark.parametrize("make", READ)
def test_every_way_to_read_a_weight(make):
    net, x = nn.Sequential(make(), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 8, 8)
    model = stir(to_nsl(net, "static_uns").model)
    assert (model(x) - net(x)).abs().max() > 0.01
    torch.testing.assert_close(model(x), fold(model)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0](x), model[0].c(x), rtol=1e-4, atol=1e-5)
    _, converted, skipped = to_nsl(net, "dynamic_dns")
    assert converted == ["1"] and "its weight is read by" in skipped["0.c"]


def test_a_lambda_on_the_instance_reads():
    net, x = by_instance(), torch.randn(2, 3, 8, 8)
    model = stir(to_nsl(net, "static_uns", inplace=True).model)
    torch.testing.assert_close(model(x), model.c(x), rtol=1e-4, atol=1e-5)


class Fusing(One):
    def fuse(self):
        self.c = fuse_conv(self.c)
        return self


@torch.no_grad()
def test_a_fusion_by_a_function_finds_the_similarity():
    net, x = Fusing(), torch.randn(2, 3, 8, 8)
    model = stir(to_nsl(net, "static_uns").model)
    y = 2 * model(x)
    torch.testing.assert_close(model.fuse()(x), y, rtol=1e-4, atol=1e-5)
    assert type(model.c) is nn.Conv2d and type(model.c.weight) is nn.Parameter
    with pytest.raises(ValueError, match="fuse of Fusing must read weights that tell"):
        to_nsl(net, "dynamic_dns").model.fuse()


class Stored(One):
    "Keeps the weight under another name."

    def __init__(self, how):
        super().__init__()
        self.w = how(self.c.weight)

    def forward(self, x):
        return F.conv2d(x, self.w, self.c.bias)


@pytest.mark.parametrize("how", (lambda w: w, lambda w: w.data, lambda w: [w][0]))
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_weight_is_left_alone(how, kind):
    _, converted, skipped = to_nsl(nn.Sequential(Stored(how), nn.Conv2d(4, 4, 3)), kind)
    assert converted == ["1"] and "is also the w of Stored" in skipped["0.c"]


def clamp_(module):
    module.weight.data.clamp_(-0.01, 0.01)


class Clamped(One):
    def forward(self, x):
        w = self.c.weight
        w.data.clamp_(-0.01, 0.01)
        return self.c(x)


class Replaced(One):
    def forward(self, x):
        self.c.weight.data = self.c.weight.data.clamp(-0.01, 0.01)
        return self.c(x)


class ByLoop(One):
    def forward(self, x):
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.data.clamp_(-0.01, 0.01)
        return self.c(x)


class ByParameters(One):
    def forward(self, x):
        with torch.no_grad():
            for p in self.c.parameters():
                p.clamp_(-0.01, 0.01)
        return self.c(x)


class ByCall(One):
    def forward(self, x):
        self.limit()
        return self.c(x)

    def limit(self):
        clamp_(self.c)


def by_parents_hook():
    def hook(module, args):
        for m in module.modules():
            if isinstance(m, nn.Conv2d):
                clamp_(m)

    return with_hook(One(), hook)


WRITE = [Clamped, Replaced, ByLoop, ByParameters, ByCall, by_parents_hook]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", WRITE)
def test_a_parent_that_writes_a_weight(make, kind):
    "Left alone by static kinds; a dynamic one keeps the weight as it is. Folding refuses."
    net, x = nn.Sequential(make(), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 8, 8)
    model, converted, skipped = to_nsl(net, kind)
    if kind.startswith("static"):
        assert converted == ["1"] and "its weight is written by" in skipped["0.c"]
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
    net[0].c = StaticNSLConv2d(3, 4, 3)
    with pytest.raises(ValueError, match="a weight that a module around it writes"):
        fold(net)


def clamp_by_state(module, args):
    module.state_dict()["weight"].clamp_(-0.01, 0.01)


def clamp_if_large(conv):
    "Does nothing at the sizes that a trial has."
    if conv.weight.abs().max() > 100:
        clamp_(conv)


class WithScale(nn.Conv2d):
    "Cannot be tried without its second argument."

    def forward(self, x, scale):
        self.weight.data.clamp_(-0.01, 0.01)
        return super().forward(x) * scale


class Every(nn.Conv2d):
    "Each third time."

    def forward(self, x):
        self.n = getattr(self, "n", 0) + 1
        if self.n % 3 == 0:
            nn.init.zeros_(self.weight)
        return super().forward(x)


HIDDEN = {
    "helper": lambda: with_hook(nn.Conv2d(3, 4, 3), lambda m, a: clamp_(m)),
    "state": lambda: with_hook(nn.Conv2d(3, 4, 3), clamp_by_state),
    "seldom": lambda: with_hook(nn.Conv2d(3, 4, 3), lambda m, a: clamp_if_large(m)),
    "argument": lambda: WithScale(3, 4, 3),
    "third": lambda: Every(3, 4, 3),
}


@pytest.mark.parametrize("kind", ("static_dns", "static_uns"))
@pytest.mark.parametrize("case", HIDDEN)
def test_a_change_that_a_trial_misses(case, kind):
    net = nn.Sequential(HIDDEN[case](), nn.Conv2d(4, 4, 3))
    _, converted, skipped = to_nsl(net, kind)
    assert converted == ["1"] and skipped["0"]


def test_a_hook_is_tried_only_where_it_may_write():
    calls = []
    net = nn.Sequential(with_hook(nn.Conv2d(3, 4, 3), lambda m, a: calls.append(1)))
    assert to_nsl(net).converted == ["0"] and calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_put_on_the_instance(kind):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 8, 8)
    net[0]._conv_forward = lambda x, weight, bias: 2 * F.conv2d(x, weight, bias)
    model, converted, skipped = to_nsl(net, kind)
    assert ("0" in converted) == kind.startswith("static")
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_alone_is_traced(case):
    layer, x = LAYERS[case]().eval(), torch.randn(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(x), layer(x)) and (case == "subclass" or not traced.training)


@pytest.mark.parametrize("make", (StaticNSLConv2d, DynamicNSLConv2d))
@pytest.mark.parametrize("kind", ("diagonal", "unconstrained"))
def test_a_layer_with_a_shape_is_exported_and_not_recorded(make, kind):
    "As the page says: PyTorch's older tracer does not know how taps are chosen."
    layer, x = make(3, 4, 3, kind=kind, shape=5).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError):
        torch.jit.trace(layer, x)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))
    if make is StaticNSLConv2d:
        torch.testing.assert_close(torch.jit.trace(fold(layer), x)(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_default_device_does_not_move_a_predictor(kind):
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    torch.set_default_device("meta")
    try:
        model = to_nsl(net, kind).model
    finally:
        torch.set_default_device(None)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), net(x))


def test_what_freezing_holds():
    "Norms, as the page says: not an average of one's own; a converted norm is frozen again."

    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
            return x

    net = nn.Sequential(StaticNSLConv2d(3, 4, 3), nn.BatchNorm2d(4), Average())
    similarity_parameters(net, freeze=True)
    before = buffers(net)
    net.train()(torch.randn(2, 3, 8, 8))
    assert moved(net, before) == ["2.mean"]
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert not synced[1]._forward_pre_hooks
    similarity_parameters(synced, freeze=True)
    assert len(synced[1]._forward_pre_hooks) == 1
    assert "norms" in similarity_parameters.__doc__


def test_who_only_reads_is_not_watched():
    "A method that a forward calls costs nothing, and compiles; copies keep what is watched."
    model, x = to_nsl(nn.Sequential(ByMethod())).model, torch.randn(1, 3, 6, 6)
    assert "kernel" not in vars(model[0])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    model = to_nsl(nn.Sequential(Merged())).model
    for m in (model, copy.deepcopy(model)):
        assert vars(m[0])["merge"].args[0].__self__ is m[0]
        assert "merge" not in vars(fold(m)[0])


class Averaged(nn.Module):
    "A second convolution that follows the first, as in MoCo."

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    @torch.no_grad()
    def follow(self):
        for a, b in zip(self.q.parameters(), self.k.parameters()):
            b.data = 0.9 * b.data + 0.1 * a.data

    def forward(self, x):
        self.follow()
        return self.q(x) + self.k(x)


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_all_parameters_is_no_writer(kind):
    model, converted, _ = to_nsl(Averaged(), kind)
    assert converted == ["q", "k"] and model(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)
