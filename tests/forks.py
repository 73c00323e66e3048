"""Processes that need not import anything: forks of one that has imported everything already.

`python tests/forks.py SOCKET` imports, listens, and forks whenever a test asks it to: a command as
a user types it, or a kernel for such a command. A fork is a process of its own, with its own
folder, environment, streams and exit status; only the five seconds that PyTorch and its company
take are spent once and not in every test. Where processes cannot be watched (only Linux has
`pidfd_open`), and where a test is about starting, `conftest.py` starts a new interpreter instead.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WATCHES = hasattr(os, "pidfd_open")
ALSO = (  # what notebooks and the command import late
    "IPython.core.completer",
    "accelerate",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "nbclient",
    "papermill",
    "scipy.stats",
    "torch._dynamo",
    "torchvision",
)

FROM_THE_START = {  # what is of use to a kernel only if it was there when the process started
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MALLOC_MMAP_MAX_": "0",  # as the runner has it
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
}


class Fork:
    "What was asked for; as much of `subprocess.Popen` as jupyter_client wants."

    stdin = stdout = stderr = None

    def __init__(self, server, what, arguments, streams=(0, 1, 2), cwd=None, env=None):
        self.returncode = None
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(server)
        asked = {"what": what, "arguments": arguments, "cwd": str(cwd or Path.cwd())}
        asked["env"] = dict(os.environ if env is None else env)
        text = json.dumps(asked).encode()
        socket.send_fds(self.line, [len(text).to_bytes(8, "big")], list(streams))
        self.line.sendall(text)
        self.pid = int.from_bytes(self.line.recv(8), "big")

    def wait(self, timeout=None):
        if self.returncode is None:
            self.line.settimeout(timeout)
            try:
                told = self.line.recv(8)  # nothing, if the watcher itself was killed
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout) from None
            self.line.close()
            killed = -signal.SIGKILL
            self.returncode = int.from_bytes(told, "big", signed=True) if told else killed
        return self.returncode

    def poll(self):
        if self.returncode is None and not select.select([self.line], [], [], 0)[0]:
            return None
        return self.wait()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


class Server:
    "The process that has imported everything: from now on, or until the tests have ended."

    def __init__(self, folder, **environment):
        self.path = str(folder / "forks")
        env = {**os.environ, **FROM_THE_START, **environment}
        self.process = subprocess.Popen([sys.executable, __file__, self.path], env=env)

    def command(self, arguments, cwd, timeout, env):
        "Run `nsl-repro` with these arguments; as `subprocess.run` does it."
        while not os.path.exists(self.path):
            assert self.process.poll() is None, "the process that is to fork has ended"
            time.sleep(0.05)
        with contextlib.ExitStack() as open_ones:
            files = [open_ones.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            streams = [file.fileno() for file in files]  # the first stays empty: nothing is typed
            fork = Fork(self.path, "command", arguments, streams, cwd, env)
            try:
                fork.wait(timeout)
            finally:
                fork.kill()
            texts = []
            for file in files[1:]:
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(arguments, fork.returncode, *texts)

    def close(self):
        self.process.terminate()
        self.process.wait()


def import_everything():
    import nsl_repro

    for found in pkgutil.walk_packages(nsl_repro.__path__, "nsl_repro."):
        if not found.name.startswith("nsl_repro._") and not found.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # a plug-in whose other half is not installed
                importlib.import_module(found.name)
    for name in ALSO:
        importlib.import_module(name)


def kernels_are_forks(server):
    "From now on a kernel of a command is a fork of `server`, too."
    from jupyter_client.provisioning import local_provisioner

    def launch_kernel(cmd, stdin=None, stdout=None, stderr=None, env=None, cwd=None, **_):
        with open(os.devnull) as nothing:
            out, err = 1 if stdout is None else stdout, 2 if stderr is None else stderr
            return Fork(server, "kernel", cmd[3:], [nothing.fileno(), out, err], cwd, env)

    local_provisioner.launch_kernel = launch_kernel


def receive(line):
    "What was asked for, and the streams."
    head, streams, *_ = socket.recv_fds(line, 8, 3)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += line.recv(size - len(text))
    return json.loads(text), streams


def watch(line, pid):
    "Tell how a process ends; end it if nobody listens any more."
    file = os.pidfd_open(pid)
    ready = select.select([line, file], [], [])[0]
    if file not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        line.sendall(status.to_bytes(8, "big", signed=True))


def serve(path):
    "Fork whenever somebody asks. Returns in each fork, with what it is to do."
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + ".new")
    listening.listen(64)
    os.rename(path + ".new", path)  # it is there when it listens
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers are not waited for
    while True:
        line, _ = listening.accept()
        if os.fork():
            line.close()
            continue
        listening.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked, streams = receive(line)
        if pid := os.fork():
            for stream in streams:
                os.close(stream)
            watch(line, pid)
            os._exit(0)
        os.setsid()  # before anybody can ask for the group of this process
        line.sendall(os.getpid().to_bytes(8, "big"))
        line.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        return asked


def main(path):
    import_everything()
    kernels_are_forks(path)
    gc.collect()
    gc.freeze()
    asked = serve(path)
    sys.path[0] = ""
    if asked["what"] == "kernel":
        from ipykernel import kernelapp

        sys.argv = ["ipykernel_launcher", *asked["arguments"]]
        kernelapp.launch_new_instance()
    else:
        from nsl_repro.command.cli import main

        sys.argv = ["nsl-repro", *asked["arguments"]]
        main()


if __name__ == "__main__":
    main(sys.argv[1])
