"""Training that is killed outright, without a chance to clean up, ends in the same bits as training that is not."""
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

RUN = """
import hashlib, json, os, signal, sys
from dataclasses import replace
import torch
from nsl_repro.data import hold_out, load_dataset
from nsl_repro.models import cnn9
from nsl_repro.training import RECIPES, make_accelerator, train

method, checkpoint, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
images, test = load_dataset('digits')
images, held = hold_out(images, 200)
torch.manual_seed(0)
model = cnn9(method, width=0.125, in_channels=1, image_size=16)

def on_step(done):
    if done == kill_at: os.kill(os.getpid(), signal.SIGKILL)

result = train(model, images, test, held, recipe=replace(RECIPES['clean'], batch_size=32, lr=0.02), steps=12, segments=3, flip=False,
               accelerator=make_accelerator('cpu'), checkpoint=checkpoint, on_step=on_step)
digest = hashlib.sha256(b''.join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()
print(json.dumps([digest, result.curves, result.metrics['test_accuracy'], result.metrics['val_accuracy']]))
"""


def run(method, checkpoint, kill_at=0):
    "One training in a process of its own: its last line, or the exit status of a process that was killed."
    command = [sys.executable, "-c", RUN, method, str(checkpoint), str(kill_at)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # networks this small only lose by a second thread
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.returncode


@pytest.mark.parametrize("method", ["static_uns", "dynamic_dns"])
def test_killed_and_continued(method, tmp_path):
    undisturbed = run(method, tmp_path / "whole.pt")
    checkpoint = tmp_path / "killed.pt"
    for kill_at in (2, 6, 11):  # before the first checkpoint, after it, after the second
        assert run(method, checkpoint, kill_at) == -signal.SIGKILL
    assert run(method, checkpoint) == undisturbed
    assert not list(tmp_path.glob("*.part"))
