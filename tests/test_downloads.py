"""Downloads as they go wrong between processes: killed in the middle, two at once, no room left.
Every server is in this process."""

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from nsl_repro.command import cli
from nsl_repro.data import sources as catalogue

PAYLOAD = os.urandom(1 << 20)
CODE = (
    "import sys; from nsl_repro.base.downloads import download; download(sys.argv[1], "
    "sys.argv[2], md5=sys.argv[3], wait=0)"
)


@pytest.fixture
def server():
    """Serves `server.body` with ranges; `/slow` takes its time, `/stops` waits in the middle,
    `/drops` never sends more than 300 kB. `server.asked` holds the `Range` of every request."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            http.asked.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(http.body) - 1}/{len(http.body)}"
                )
            self.send_header("Content-Length", str(len(http.body) - start))
            self.send_header("ETag", '"one"')
            self.end_headers()
            end = start + 300_000 if self.path == "/drops" else len(http.body)
            try:
                for i in range(start, min(end, len(http.body)), 1 << 15):
                    self.wfile.write(http.body[i : min(end, i + (1 << 15))])
                    if self.path == "/stops" and i == 1 << 19 and not asked:
                        http.go.wait(30)
                    if self.path == "/slow":
                        time.sleep(0.01)
            except OSError:
                pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.body, http.asked, http.go = PAYLOAD, [], threading.Event()
    http.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def start(url, path, **options):
    md5 = hashlib.md5(PAYLOAD).hexdigest()
    return subprocess.Popen(
        [sys.executable, "-c", CODE, url, str(path), md5],
        env={**os.environ, "NSL_PROGRESS": "off"},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if p.name[0] != ".")


def test_killed_in_the_middle_and_continued(server, tmp_path):
    goal = tmp_path / "file"
    first = start(f"{server.url}/stops", goal)
    part, patience = tmp_path / "file.part", time.monotonic() + 30
    while (part.stat().st_size if part.exists() else 0) < 1 << 19 and time.monotonic() < patience:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    server.go.set()
    assert visible(tmp_path) == ["file.part", "file.part.json"]
    kept = part.stat().st_size
    assert 0 < kept < len(PAYLOAD)
    second = start(f"{server.url}/stops", goal)
    assert second.wait(30) == 0, second.stderr.read()
    second.stderr.close()
    assert goal.read_bytes() == PAYLOAD and server.asked == [None, f"bytes={kept}-"]


def test_two_at_once_fetch_it_once(server, tmp_path):
    both = [start(f"{server.url}/slow", tmp_path / "file") for _ in range(2)]
    assert [p.communicate(timeout=60)[1] for p in both] == ["", ""]
    assert (tmp_path / "file").read_bytes() == PAYLOAD and server.asked == [None]


def test_no_room(server, tmp_path):
    """The limit on a file's size stands for a full disk: the system refuses the write in the same
    way."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))

    full = start(f"{server.url}/file", tmp_path / "file", preexec_fn=limited)
    assert "File too large" in full.communicate(timeout=60)[1] and server.asked == [
        None
    ]  # no use in trying again
    assert not (tmp_path / "file").exists()
    after = start(f"{server.url}/file", tmp_path / "file")
    assert after.wait(30) == 0 and server.asked[1].startswith("bytes=2")
    after.stderr.close()
    assert (tmp_path / "file").read_bytes() == PAYLOAD


def tiny_archive(source):
    "An archive with random files of a source's names: (its bytes, name -> content)."
    contents = {name: os.urandom(100_000) for name in source.files}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{source.folders[0]}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue(), contents


def md5(data):
    return hashlib.md5(data).hexdigest()


def test_data_get_goes_on_where_it_stopped(server, tmp_path, monkeypatch):
    "The command, with CIFAR-10's name and a tiny archive: broken off, continued, damaged, mended."
    monkeypatch.setenv("NSL_PROGRESS", "off")
    real = catalogue.SOURCES["cifar10"]
    server.body, contents = tiny_archive(real)
    files = {name: md5(content) for name, content in contents.items()}
    where = dict(url=f"{server.url}/drops", md5=md5(server.body), size=len(server.body))
    monkeypatch.setitem(catalogue.SOURCES, "cifar10", replace(real, files=files, **where))

    def get(*more):
        command = ["data", "get", "cifar10", "--root", str(tmp_path), *more]
        result = CliRunner().invoke(cli.app, command, prog_name="nsl-repro")
        return result.exit_code, result.stdout, result.stderr

    once = catalogue.download
    monkeypatch.setattr(catalogue, "download", lambda *a, **k: once(*a, **k, retries=1))
    code, _, err = get()
    assert code == 3 and err.startswith("nsl-repro: cifar10 could not be brought to")
    assert "is kept: try again to go on" in err and err.count("\n") == 1
    assert visible(tmp_path) == ["drops.part", "drops.part.json"]
    monkeypatch.setattr(catalogue, "download", lambda *a, **k: once(*a, **k, wait=0))
    code, out, _ = get()
    assert (code, out) == (0, f"cifar10 is present at {tmp_path / real.folders[0]}\n")
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]
    assert visible(tmp_path) == [real.folders[0]]
    assert get()[0] == 0 and len(server.asked) == 3  # it is there
    (tmp_path / real.folders[0] / "test_batch").write_bytes(b"cos\nsystem\n")
    assert get()[0] == 0 and len(server.asked) == 6
    assert (tmp_path / real.folders[0] / "test_batch").read_bytes() == contents["test_batch"]
