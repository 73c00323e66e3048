"""Four tiny recorded runs, one a training loop, that can be killed at any of the points they pass;
and what must be the same afterwards.

The tests fork them off one process that has imported everything (`start`), so that a run costs a
fraction of a second.
"""

import builtins
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
# forked processes must not inherit half a pool of threads
os.environ.update(OMP_NUM_THREADS="1", NSL_PROGRESS="off")

import torch  # noqa: E402

from nsl_repro.base import files, progress  # noqa: E402
from nsl_repro.data import splits as splitting  # noqa: E402
from nsl_repro.results import ledger  # noqa: E402
from nsl_repro.training import classify, embedding, fewshot, imagenet, loop  # noqa: E402
from nsl_repro.training import models, recipe as recipes, weights  # noqa: E402
from nsl_repro.data.images import hold_out, limit, load_dataset, to_input  # noqa: E402

SOAK = bool(os.environ.get("NSL_SOAK"))
TIMINGS = {"step_ms", "loader_share", "images_per_s"}  # what no two runs have in common
torch.set_num_threads(1)
IMAGES, TEST = (limit(part, n) for part, n in zip(load_dataset("digits"), (200, 60)))
ledger.ask_git = lru_cache(ledger.ask_git)  # the same for all, and slow
ledger.ask_git("rev-parse", "HEAD")
progress.progress_bar(
    1
).get_lock()  # a lock that is killed with its process would be reported as lost


def classifier(folder, on_step, method="static_uns", **options):
    """The loop of the CIFAR experiments: data held out, augmentation, momentum, batch norm, weights
    kept."""
    seen, held = hold_out(IMAGES, 40)
    torch.manual_seed(0)
    arguments = dict(method=method, width=0.125, in_channels=1, image_size=16)
    model = models.cnn9(**arguments)
    model.register_forward_pre_hook(lambda *_: tick("forward"))
    result = classify.train(
        model,
        seen,
        TEST,
        held,
        recipe=replace(recipes.RECIPES["clean"], batch_size=16, lr=0.02),
        steps=6,
        segments=3,
        flip=False,
        **options,
        accelerator=loop.make_accelerator("cpu"),
        checkpoint=folder / "checkpoint.pt",
        on_step=on_step,
    )
    weights.keep_model(
        folder,
        model,
        "cnn9",
        arguments,
        weights.Preprocessing.of(seen.images, "standardised"),
        seen.classes,
    )
    return result.metrics, result.curves, result.wall_time_s


def embedder(folder, on_step, **options):
    "Metric learning: mined quadruplets, the PDDM unit, Adam."
    x = to_input(IMAGES.images, "centred").flatten(1)
    torch.manual_seed(0)
    net, objective = (
        embedding.EmbeddingNet(x.shape[1], 16),
        embedding.make_objective("pddm_quadruplet", 16),
    )

    def inputs(rows, step):
        tick("data")
        return x[rows]

    measure = lambda: {"spread": float(embedding.embed(net, lambda rows, step: x[rows], 50).std())}
    result = embedding.train_embedding(
        net,
        objective,
        inputs,
        IMAGES.labels,
        steps=6,
        batch_size=32,
        segments=3,
        measure=measure,
        accelerator=loop.make_accelerator("cpu"),
        checkpoint=folder / "checkpoint.pt",
        **options,
    )
    files.write_whole(
        folder / "model.safetensors",
        weights.tensor_bytes(
            embedding.nn.Module.state_dict(weights.Embedder(net, objective.score))
        ),
    )
    return result.metrics, result.curves, result.wall_time_s


def learner(folder, on_step, **options):
    "Few-shot learning: episodes, an inner loop of adaptation, the best state on validation kept."
    episodes = fewshot.EpisodeSampler(
        IMAGES.images.float().flatten(1) / 255, IMAGES.labels, way=5, shot=1, query=3
    )
    torch.manual_seed(0)
    net = fewshot.nn.Sequential(
        fewshot.nn.Linear(256, 16), fewshot.nn.Tanh(), fewshot.nn.Linear(16, 5)
    )

    def loss(batch):
        tick("data")
        return fewshot.episode_loss(net, batch, steps=2, lr=0.1)

    score = lambda: (
        fewshot.evaluate_episodes(lambda e: net(e.query), episodes, range(1000, 1005)).interval.mean
    )
    result = fewshot.train_episodes(
        net,
        episodes,
        loss,
        6,
        tasks=2,
        lr=0.01,
        segments=3,
        validate=score,
        checkpoint=folder / "checkpoint.pt",
        **options,
    )
    files.write_whole(folder / "model.safetensors", weights.tensor_bytes(net.state_dict()))
    return result.metrics, result.curves, result.wall_time_s


def photographer(folder, on_step, workers=0, **options):
    "The loop of the ImageNet experiments: a loader, micro-batches, its own augmentation."
    splits = splitting.load_splits("digits", train_images=120, validation_images=30, test_images=30)
    recipe = imagenet.ImageNetRecipe(batch_size=16, micro_batch=8, lr=0.05, min_area=0.5)
    torch.manual_seed(0)
    model = imagenet.build_network(
        "cnn10", "dynamic_dns", num_classes=10, width=0.0625, image_size=16
    )
    model.register_forward_pre_hook(lambda *_: tick("forward"))
    result = imagenet.train_network(
        model,
        splits,
        recipe=recipe,
        steps=4,
        segments=2,
        accelerator=imagenet.make_engine("cpu"),
        checkpoint=folder / "checkpoint.pt",
        workers=workers,
        on_step=on_step,
        **options,
    )
    files.write_whole(
        folder / "model.safetensors",
        weights.tensor_bytes({k: v.contiguous() for k, v in model.state_dict().items()}),
    )
    return result.metrics, result.curves, result.wall_time_s


LOOPS = {f.__name__: f for f in (classifier, embedder, learner, photographer)}
points: list[str] = []  # what this process has passed
deadly = 0  # the number of the point at which it kills itself


def tick(kind):
    points.append(kind)
    if len(points) == deadly:
        os.kill(os.getpid(), signal.SIGKILL)


def before_and_after(owner, name, kind=None):
    "Make a function pass a point before and one after its work."
    work = getattr(owner, name)

    def watched(*args, **kwargs):
        tick(f"before {kind or name}")
        result = work(*args, **kwargs)
        tick(f"after {kind or name}")
        return result

    setattr(owner, name, watched)


class Halting:
    "A file whose writing passes a point half-way, with one half on the disk."

    def __init__(self, path, *args, **kwargs):
        self.path, self.file = Path(path), builtins.open(path, *args, **kwargs)

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        tick(f"half of {self.path.name.split('.')[1]}")
        return self.file.write(data[half:])

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def watch():
    for owner, name in (
        (classify, "batch_table"),
        (classify, "augment_by"),
        (torch.optim.SGD, "step"),
        (torch.optim.Adam, "step"),
        (torch, "save"),
        (os, "fsync"),
        (os, "replace"),
        (loop, "save_checkpoint"),
        (ledger, "write_entry"),
        (weights, "keep_model"),
    ):
        before_and_after(owner, name)
    files.open = Halting


def record(loop, root, die_at=0, on_step=None, **options):
    """Do one of the runs, and publish it, which is one more file that may be cut; the points it
    passed are left in `root/points`."""
    global deadly
    deadly = die_at
    os.environ["NSL_PUBLISH"] = "1"
    watch()
    identity = dict(
        experiment="victim",
        dataset="digits",
        method=loop,
        preset="smoke",
        seed=0,
        parameters={},
        device="cpu",
    )
    entry = ledger.recorded_run(
        lambda folder: LOOPS[loop](folder, on_step, **options), root, **identity
    )
    (Path(root) / "points").write_text("\n".join(points))
    return entry


def outcome(root):
    """What two runs must have in common to the last bit: the ledger entry but for the time it took,
    and the weights."""
    (entry,) = Path(root).glob("results/*.json")
    fields = json.loads(entry.read_text())
    fields.pop("wall_time_s")
    fields["metrics"] = {k: v for k, v in fields["metrics"].items() if k not in TIMINGS}
    (model,) = Path(root).glob("runs/*/model.safetensors")
    assert ledger.read_entry(model.with_name("entry.json")) == ledger.read_entry(entry)
    return fields, hashlib.sha256(model.read_bytes()).hexdigest()


def _child(work, errors, *args, **kwargs):
    with open(errors, "a", buffering=1) as sys.stderr:
        try:
            work(*args, **kwargs)
        except BaseException as e:
            traceback.print_exc()
            print(f"{type(e).__name__}: {e}", file=sys.stderr)
            os._exit(5 if isinstance(e, files.CannotWrite) else 1)


_starting = threading.Lock()


def start(work, root, *args, **kwargs):
    """Begin `work(root, ...)`, a function of an importable module, in a process of its own; its
    error stream goes to `root/errors`."""
    Path(root).mkdir(parents=True, exist_ok=True)
    process = _context().Process(
        target=_child, args=(work, Path(root) / "errors", *args), kwargs=kwargs
    )
    # `start` polls all known children: in another thread it would take the status that `join` waits
    # for here, which then is 255
    with _starting:
        process.start()
        multiprocessing.process._children.discard(process)
    return process


@lru_cache
def _context():
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["victim"])
    return context
