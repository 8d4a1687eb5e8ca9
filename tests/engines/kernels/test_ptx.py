"""The PTX in the wheel: it is what its records say, it assembles, and this Triton compiles it again."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.engines.kernels import lint, ptx
from saccade.engines.kernels.compile import FOLDER, Variant, compile_variant, variants
from saccade.engines.kernels.launch import DTYPES, HEAD_DIMS, Kernel
from saccade.engines.kernels.ptx import LaunchRecord
from saccade.engines.kernels.registry import KERNELS
from saccade.errors import EngineError, UsageError
from saccade.models import attention

RECORDS = ptx.records()
PTXAS = shutil.which("ptxas")
MAX_FOLDER_BYTES = 2**20


def by_file(record: LaunchRecord) -> str:
    return record.file


def test_every_variant_ships_and_nothing_else() -> None:
    expected = {f"{variant.name}.ptx.gz" for variant in variants()}
    assert {record.file for record in RECORDS} == expected
    assert {path.name for path in FOLDER.iterdir()} == {ptx.RECORDS, *expected}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_FOLDER_BYTES


@pytest.mark.parametrize("record", RECORDS, ids=by_file)
def test_shipped_ptx_keeps_the_rules(record: LaunchRecord) -> None:
    assert lint.problems(ptx.load(record), record) == []
    assert len({record.triton for record in RECORDS}) == 1
    assert record.alignment == 16


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
def test_a_record_lists_the_arguments_that_a_caller_gives(kernel: Kernel) -> None:
    for record in RECORDS:
        if record.kernel == kernel.name:
            assert tuple(name for name, _ in record.parameters) == kernel.parameters
            assert [kind for name, kind in record.parameters if name in kernel.scalars] == ["int32"] * len(
                kernel.scalars
            )
            assert record.grid == kernel.formula


def test_the_models_call_kernels_for_what_there_are_kernels_for() -> None:
    assert attention.KERNEL_HEAD_DIMS == HEAD_DIMS
    assert [str(dtype).removeprefix("torch.") for dtype in attention.KERNEL_DTYPES] == list(DTYPES)


ONE = next(r for r in RECORDS if r.kernel == "token_attention" and r.arch == 80)
SPOILT = [
    ({"kernel": "other"}, None, "entry is token_attention"),
    ({"arch": 75}, None, "target is not sm_75"),
    ({"ptx_version": "7.0"}, None, "instruction set is not 7.0"),
    ({"num_warps": 16}, None, "blocks of"),
    ({"shared_bytes": 50_000}, None, "shared memory"),
    ({"parameters": ONE.parameters[1:]}, None, "parameters are"),
    ({}, (".reqntid", ".maxntid"), "0 kernels"),
    ({}, ("\n\tret;", "\n\t.loc 1 2 3\n\tret;"), "line information"),
    ({}, ("\n\tret;", "\n\tnop;\n\tret;"), "sha256"),
]


@pytest.mark.parametrize(("fields", "change", "found"), SPOILT, ids=[found for *_, found in SPOILT])
def test_the_rules_are_seen_to_be_broken(
    fields: dict[str, object], change: tuple[str, str] | None, found: str
) -> None:
    text = ptx.load(ONE)
    spoilt = text.replace(*change) if change else text
    assert spoilt != text or fields
    assert any(found in problem for problem in lint.problems(spoilt, dataclasses.replace(ONE, **fields)))


HIDDEN = (
    "\n.visible .entry k(\n\t.param .u64 .ptr .global .align 1 k_param_0,\n"
    "\t.param .u64 .ptr .global .align 1 k_param_1\n)\n.reqntid 32\n"
    "{\n\tld.param.u64 %rd1, [k_param_0];\n\tret;\n}\n"
)


def test_hidden_parameters_are_stripped_where_nothing_uses_them() -> None:
    stripped = lint.strip_hidden(HIDDEN, 1)
    assert "k_param_0\n)" in stripped
    assert "k_param_1" not in stripped
    with pytest.raises(ValueError, match="k_param_1 is used"):
        lint.strip_hidden(HIDDEN.replace("[k_param_0]", "[k_param_1]"), 1)


def test_the_newest_architecture_that_a_gpu_takes_is_found() -> None:
    wanted = {"D": 32, "TILE": 64}
    found = {cc: ptx.find("token_attention", "float16", cc, **wanted).arch for cc in (75, 80, 89, 90, 120)}
    assert found == {75: 75, 80: 80, 89: 80, 90: 80, 120: 80}
    with pytest.raises(UsageError, match="bfloat16, compute capability 75"):
        ptx.find("token_attention", "bfloat16", 75, **wanted)
    with pytest.raises(UsageError, match="no kernel of that name"):
        ptx.find("nonsense", "float16", 80)


def test_changed_ptx_is_refused() -> None:
    with pytest.raises(EngineError, match="reinstall"):
        ptx.load(dataclasses.replace(ONE, sha256="0" * 64))


def test_reading_ptx_needs_neither_triton_nor_torch() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; sys.modules['torch'] = None\n"
        "from saccade.engines.kernels import plugins, ptx, registry, traffic, driver\n"
        "print(len(ptx.load(ptx.records()[0])), len(registry.KERNELS))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [str(len(ptx.load(RECORDS[0]))), str(len(KERNELS))]


@pytest.mark.slow
@pytest.mark.skipif(PTXAS is None, reason="ptxas is not installed (it comes with the CUDA toolkit)")
@pytest.mark.parametrize("record", RECORDS, ids=by_file)
def test_shipped_ptx_assembles(record: LaunchRecord, tmp_path: Path) -> None:
    """For its own architecture, and sm_80 for newer ones too, as the driver will."""
    assert PTXAS is not None
    source = tmp_path / "kernel.ptx"
    source.write_text(ptx.load(record))
    for arch in (record.arch, 120) if record.arch == 80 else (record.arch,):
        command = [PTXAS, f"-arch=sm_{arch}", str(source), "-o", str(tmp_path / "kernel.cubin")]
        assembled = subprocess.run(command, capture_output=True, text=True, check=False)
        assert assembled.returncode == 0, assembled.stderr


def compiled_again(variant: Variant) -> tuple[LaunchRecord, LaunchRecord]:
    triton = pytest.importorskip("triton", reason="compiling kernels needs Triton")
    (shipped,) = (record for record in RECORDS if record.file == f"{variant.name}.ptx.gz")
    if triton.__version__ != shipped.triton:
        pytest.skip(f"the shipped PTX is of Triton {shipped.triton}, here is {triton.__version__}")
    record, text = compile_variant(variant)
    assert gzip.compress(text.encode(), 9, mtime=0) == (FOLDER / record.file).read_bytes()
    return record, shipped


def test_one_kernel_compiles_to_the_same_bytes() -> None:
    variant = next(
        v for v in variants() if v.function.__name__ == "token_attention" and v.dtype == "bfloat16"
    )
    record, shipped = compiled_again(variant)
    assert record == shipped


@pytest.mark.slow
def test_every_kernel_compiles_to_the_same_bytes() -> None:
    for variant in variants():
        record, shipped = compiled_again(variant)
        assert record == shipped, variant.name
