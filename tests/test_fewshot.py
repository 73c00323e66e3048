"""The protocol of few-shot learning as the experiment runs it: which classes a network learns from,
what is chosen on which, and what each training moves."""

import pytest
import torch

from nsl_repro import load
from nsl_repro.results.ledger import load_ledger, run_folder
from nsl_repro.training.loop import load_checkpoint

METHODS = "finetune_head,static_dns,meta_static_dns,dynamic_dns_cnn9"
BOTH, ONE = "train_and_validation", "train"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("fewshot")


@pytest.fixture(scope="module")
def runs(nsl_repro, root):
    "Both settings of `classes` in one ledger: setting -> method -> entry; and the trials of each."
    found, trials = {}, {}
    for setting in (BOTH, ONE):
        asked = dict(preset="smoke", classes=setting, methods=METHODS)
        typed = [word for k, v in asked.items() for word in ("-p", f"{k}={v}")]
        done = nsl_repro("run", "nsl_fewshot", *typed, "-o", root)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        own = load_ledger(root, experiment="nsl_fewshot", classes=setting)
        found[setting] = {e.method: e for e in own}
        trials[setting] = load_ledger(root, experiment="nsl_fewshot_tuning")
    return found, trials


def pretrained(root, network, learned_from):
    "The state of a pre-trained network."
    (entry,) = load_ledger(
        root, experiment="nsl_fewshot_pretraining", method=network, learned_from=learned_from
    )
    return load_checkpoint(run_folder(entry, root) / "checkpoint.pt")["model"]


def test_classes(runs):
    "Who learns from the validation classes, and who never does; `paper` is the default."
    found, _ = runs
    for setting, entries in found.items():
        assert set(entries) == set(METHODS.split(","))
        for method, e in entries.items():
            assert e.parameters["variant"] == "paper"
            expected = ONE if method == "meta_static_dns" else setting
            assert e.parameters["learned_from"] == expected, method
    always = [found[setting]["meta_static_dns"].metrics for setting in (BOTH, ONE)]
    clocks = {"step_ms"}
    first, second = ({k: v for k, v in m.items() if k not in clocks} for m in always)
    assert first == second


def test_nothing_is_chosen_on_what_was_learned(runs, root):
    """The trials of a run that learns from the validation classes are those of one that does not:
    the second run adds none, and a trial names networks of the training classes alone."""
    found, trials = runs
    assert trials[BOTH] == trials[ONE] and trials[BOTH]
    assert not any("learned_from" in e.parameters for e in trials[ONE])
    for method in ("finetune_head", "static_dns"):
        both, one = (found[setting][method] for setting in (BOTH, ONE))
        assert both.parameters["lr"] == one.parameters["lr"]
    assert pretrained(root, "plain", ONE).keys() == pretrained(root, "plain", BOTH).keys()


@pytest.mark.parametrize("setting", [BOTH, ONE])
def test_a_static_network_is_the_plain_one_with_the_identity(runs, root, setting):
    found, _ = runs
    static = load(run_folder(found[setting]["static_dns"], root)).state_dict()
    plain = pretrained(root, "plain", setting)
    similarities = [name for name in static if name.endswith("M_s")]
    assert len(similarities) == 4
    for name in similarities:
        assert torch.equal(static[name], torch.ones(9))
    for name in static.keys() - set(similarities) - {"head.weight", "head.bias"}:
        assert torch.equal(static[name], plain[name]), name


def test_meta_learning_moves_similarities_and_classifier_alone(runs, root):
    found, _ = runs
    learned = load(run_folder(found[ONE]["meta_static_dns"], root)).state_dict()
    plain, zero = pretrained(root, "plain", ONE), torch.zeros(())
    for name, value in learned.items():
        if name.endswith("M_s"):
            start = torch.ones(9)
        else:
            start = zero.expand_as(value) if name.startswith("head") else plain[name]
        assert torch.equal(value, start) != name.endswith(("M_s", "head.weight", "head.bias")), name


def test_cnn9_is_kept(runs, root):
    found, _ = runs
    model = load(run_folder(found[BOTH]["dynamic_dns_cnn9"], root))
    predictors = [name for name, _ in model.named_modules() if name.endswith("predictor")]
    assert len(predictors) == 9
    assert "cnn9_width" in found[BOTH]["dynamic_dns_cnn9"].parameters
    images = torch.zeros((2, *model.preprocess.size), dtype=torch.uint8)
    assert model(model.preprocess(images)).isfinite().all()
