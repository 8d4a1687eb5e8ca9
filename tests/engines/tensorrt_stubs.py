"""Real TensorRT bindings without TensorRT, for tests that ask whether a name exists or a plugin registers.

How to use it: `stubs = tensorrt_stubs.bindings("11.4.0.106")`, then `stubs.run(code)` runs Python code in a
child process in which `import tensorrt` and `import tensorrt.plugin` are NVIDIA's own bindings of that
version, and returns what the code printed. With `bindings(version, registry=True)` the plugin registry is
real too (NVIDIA's lean runtime beneath), so plugins register, describe shapes and give launches.

`names_used(path)` lists the TensorRT names of a source file, and `stubs.missing(names)` those among them that
the version lacks.

The bindings are wheels on PyPI; the libraries that they want are not, so three small ones are made with gcc
whose functions return null. A Builder or Runtime cannot be made. Anything missing (network, gcc) raises
`Unavailable` with the reason; tests skip with it. Downloads and libraries are kept in the temporary folder.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("10.16.1.11", "11.4.0.106")

# The only functions that the bindings leave open, by library.
SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createInferRefitter_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
# Those that the lean runtime lacks; it has the others.
MISSING_IN_LEAN = ("createInferBuilder_INTERNAL", "getBuilderPluginRegistry")

# How our sources call the two modules.
ROOTS = {"trt": "tensorrt", "trtp": "tensorrt.plugin"}

PRELUDE = """
import sys
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
import tensorrt_bindings.plugin
sys.modules["tensorrt.plugin"] = tensorrt_bindings.plugin
"""


class Unavailable(Exception):
    """The bindings cannot be had here; the message says why."""


@dataclass(frozen=True)
class Stubs:
    """Where one version of the bindings and its libraries are."""

    version: str
    packages: Path
    libraries: tuple[Path, ...]

    def run(self, code: str, *arguments: str, timeout_s: float = 240) -> str:
        """Standard output of `code` in a child process that has the bindings as `tensorrt`."""
        paths = [str(self.packages), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(map(str, self.libraries)),
            "PYTHONPATH": ":".join(paths),
        }
        child = subprocess.run(
            [sys.executable, "-c", PRELUDE + code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert child.returncode == 0, child.stderr
        return child.stdout

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` (`tensorrt.DataType.BF16`) that this version does not have."""
        return self.run(MISSING, *sorted(names)).rpartition("MISSING")[2].split()


MISSING = """
import operator
absent = []
for name in sys.argv[1:]:
    path = name.removeprefix("tensorrt.")
    try:
        operator.attrgetter(path)(sys.modules["tensorrt"])
    except AttributeError:
        absent.append(name)
print("MISSING", *absent)
"""


def names_used(path: Path, roots: Mapping[str, str] = ROOTS) -> set[str]:
    """Dotted names that the source file at `path` takes from TensorRT: what follows a variable of `roots`."""
    names = set()
    inner: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and node not in inner:
            parts: list[str] = []
            value: ast.expr = node
            while isinstance(value, ast.Attribute):
                inner.add(value)
                parts.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id in roots:
                names.add(".".join([roots[value.id], *reversed(parts)]))
    return names


def bindings(version: str, *, registry: bool = False) -> Stubs:
    """The bindings of `version`, with the lean runtime's plugin registry if asked for."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable("the bindings' wheels are taken for x86_64 Linux")
    folder = Path(tempfile.gettempdir()) / f"saccade-tensorrt-{version}"
    packages = _installed(folder, f"tensorrt-cu13-bindings=={version}", "tensorrt_bindings")
    major = version.partition(".")[0]
    if major == "10":  # its plugin module calls int() on arrays of one element, which NumPy 2.4 refuses
        _installed(folder, "numpy==2.3.5", "numpy")
    if not registry:
        return Stubs(version, packages, (_libraries(folder / "null", major, SYMBOLS, ()),))
    lean = (
        _installed(folder, f"tensorrt-lean-cu13-libs=={version}", "tensorrt_lean_libs") / "tensorrt_lean_libs"
    )
    symbols = {**SYMBOLS, "nvinfer": MISSING_IN_LEAN}
    real = (f"-L{lean}", "-Wl,--no-as-needed", f"-l:libnvinfer_lean.so.{major}")
    return Stubs(version, packages, (_libraries(folder / "lean", major, symbols, real), lean))


def _installed(folder: Path, requirement: str, package: str) -> Path:
    """`folder` with the wheel of `requirement` unpacked in it, from the package index or from before."""
    if (folder / package).is_dir():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--retries", "1", "--timeout", "20", "--disable-pip-version-check"]
        installed = subprocess.run(
            [*command, "--target", scratch, requirement], capture_output=True, text=True, check=False
        )
        if installed.returncode:
            reason = installed.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise Unavailable(f"{requirement} cannot be installed: {reason[0]}")
        for path in Path(scratch).iterdir():
            if not (folder / path.name).exists():
                path.rename(folder / path.name)
    return folder


def _libraries(folder: Path, major: str, symbols: dict[str, Sequence[str]], real: Sequence[str]) -> Path:
    """Null libraries with the bindings' sonames in `folder`; `real` is linked beneath libnvinfer."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Unavailable("gcc is not installed: apt-get install gcc")
    folder.mkdir(exist_ok=True)
    for library, names in symbols.items():
        target = folder / f"lib{library}.so.{major}"
        if not target.exists():
            source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in names)
            command = [
                compiler,
                "-shared",
                "-fPIC",
                "-x",
                "c",
                "-",
                "-x",
                "none",
                f"-Wl,-soname,{target.name}",
            ]
            beneath = real if library == "nvinfer" else ()
            subprocess.run(
                [*command, "-o", str(target), *beneath],
                input=source,
                text=True,
                check=True,
                capture_output=True,
            )
    return folder
