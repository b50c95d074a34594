"""Compiles every Triton kernel for GPUs that are not here, and counts what it costs.

Kernels are launched as in production, with tensors that have shapes and no memory, against a driver
that only names a target: so what is compiled is what a card would be given, with the settings of
the table. Per kernel: registers and spilled bytes (``ptxas -v``), stack (``cuobjdump``), shared
memory against the known limit, and from the disassembly the instructions of the innermost loop that
multiplies matrices; how wide the widest and narrowest stores of tiles are, and whether the tensor
memory accelerator and registers that move between warps are used (PTX). Proves no speed.

    python benches/kernel_compile.py            # all kernels; writes benches/records
    python benches/kernel_compile.py --fast     # the two big kernels, bare and full; no record
    python benches/kernel_compile.py --pairs    # the kernel of the loss alone; a record of its own
    python benches/kernel_compile.py --bfloat16 # the kernels of a head, sm_80 and sm_90; likewise
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

from mmrlhf_kernels.backend import Block, HeadOptions, KeptBlock, LossGradient, Sweep
from mmrlhf_kernels.mm_dpo_kernel import mm_dpo_launch
from mmrlhf_kernels.mm_dpo_plain import Numbers, PairCall
from mmrlhf_kernels.pair import LOSS_TYPES
from mmrlhf_kernels.triton_gradient import (
    finish_unit_launch,
    kept_gradient_launch,
    logit_gradient_launch,
)
from mmrlhf_kernels.triton_rows import check_launch
from mmrlhf_kernels.triton_settings import INTERPRETED, SHARED_MEMORY, Device, use_settings
from mmrlhf_kernels.triton_sweep import combine_launch, rebase_launch, sweep_launch
from mmrlhf_kernels.triton_tile import Head, Launch, head_of, settings_of
from record import write_record

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ROWS, HIDDEN, VOCABULARY, CHUNK = 8192, 3584, 152_064, 8192
"""LLaVA-OneVision-7B with two sequences of 4096."""
PARTS = {
    "fast": "the two big kernels, bare and full, no record",
    "pairs": "the kernel of the loss alone",
    "bfloat16": "the kernels of a head in bfloat16 on sm_80 and sm_90",
}
PAIRS = 256
MARKS = ("wgmma", "cp.async.bulk.tensor", "setmaxnreg")
"""What a kernel's PTX shows of Hopper's own instructions."""
DEVICE = Device("sm_90", 132, 50 << 20)
"""H100; parts of the vocabulary are numbers at run time and change no kernel."""
PLAIN = HeadOptions()
CAPPED = HeadOptions(softcap=30.0, logit_scale=0.5)
FAST = set(itertools.product(("sweep", "logit_gradient"), ("plain", "softcap, statistics")))
"""The two big kernels bare, and with all that is switched on, which has settings of its own."""
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MULTIPLIES = re.compile(r"\b(HGMMA|HMMA|FFMA)\b")


class NoDevice:
    """A driver that names a target and launches nothing."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """A number of its own per target: Triton keeps compiled kernels per device."""
        return int(re.sub(r"\D", "", str(self.target.arch)))

    def get_current_stream(self, _: int) -> int:
        """The null stream."""
        return 0


class Case(NamedTuple):
    """A launch under a name."""

    kernel: str
    variant: str
    launch: Launch


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that has a shape and no memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def head(dtype: torch.dtype, columns: int, options: HeadOptions, inner: int, *, bias: bool) -> Head:
    """A head of production size."""
    target = empty(ROWS, dtype=torch.int64)
    hidden, weight = empty(ROWS, inner, dtype=dtype), empty(columns, inner, dtype=dtype)
    row = empty(columns, dtype=dtype) if bias else None
    return head_of(Block(hidden, weight, row, target, options))


def head_cases(architecture: str, dtype: torch.dtype) -> Iterator[Case]:
    """The kernels with a matrix product, bare and with what may be switched on."""
    everything = {"entropy": True, "argmax": True}
    row, out = empty(ROWS), empty(ROWS, CHUNK, dtype=dtype)
    for variant, options, inner, asked in (
        ("plain", PLAIN, HIDDEN, {}),
        ("bias, statistics", PLAIN, HIDDEN, everything),
        ("softcap, statistics", CAPPED, HIDDEN, everything),
        ("ragged H", PLAIN, HIDDEN + 1, {}),
    ):
        bias = bool(asked)
        h = head(dtype, VOCABULARY, options, inner, bias=bias)
        settings = settings_of(h, "sweep", architecture, extras=bias)
        yield Case("sweep", variant, sweep_launch(h, settings, DEVICE, **asked))
        h = head(dtype, CHUNK, options, inner, bias=bias)
        rows = LossGradient(row, row, *((row, row) if asked else ()))
        settings = settings_of(h, "logit_gradient", architecture, extras=bias)
        yield Case("logit_gradient", variant, logit_gradient_launch(h, rows, out, settings))
        if variant in {"plain", "softcap, statistics"}:
            settings = settings_of(h, "kept", architecture, extras=bias)
            launch = sweep_launch(h, settings, DEVICE, out=out, **asked)
            yield Case("sweep", f"writing exponentials, {variant}", launch)


def form_cases(architecture: str, dtype: torch.dtype) -> Iterator[Case]:
    """The same in the other forms of loading operands, where the architecture has them."""
    for loads in ("descriptors", "specialized"):
        with use_settings(loads=loads):
            for case in head_cases(architecture, dtype):
                if case.launch.arguments["TILE"].loads == loads:
                    yield case


def kept_cases(architecture: str, dtype: torch.dtype) -> Iterator[Case]:
    """The other kernels of the schedules that keep exponentials."""
    row, kept = empty(ROWS), empty(ROWS, CHUNK, dtype=dtype)
    h = head(dtype, CHUNK, PLAIN, HIDDEN, bias=False)
    launch = sweep_launch(h, settings_of(h, "kept", architecture), DEVICE, out=kept)
    width = launch.arguments["TILE"].columns
    yield Case("rebase", "", rebase_launch(launch.arguments["written"], row, width))
    for variant, options in (("plain", PLAIN), ("softcap", CAPPED)):
        block = KeptBlock(kept, row, h.target, options, 0, row)
        launch = kept_gradient_launch(block, LossGradient(row, row), kept)
        yield Case("kept_gradient", variant, launch)
        block, unit = block._replace(target_logit=None), LossGradient(row, None, unit=1.0)
        launch = kept_gradient_launch(block, unit, kept)
        yield Case("kept_gradient", f"unit, {variant}", launch)
        sweep = Sweep(row, row, row, logp=row)
        hidden, weight = (empty(n, HIDDEN, dtype=dtype) for n in (ROWS, VOCABULARY))
        whole, total = Block(hidden, weight, None, h.target, options), empty(ROWS, HIDDEN)
        yield Case("finish_unit", variant, finish_unit_launch(whole, sweep, total, row))
        named = whole._replace(weight=hidden)  # with LoRA: the rows of targets alone
        launch = finish_unit_launch(named, sweep, total, row)
        yield Case("finish_unit", f"rows of targets, {variant}", launch)


def small_cases() -> Iterator[Case]:
    """The kernels without a matrix product."""
    h = head(torch.bfloat16, VOCABULARY, PLAIN, HIDDEN, bias=False)
    sweep = sweep_launch(h, settings_of(h, "sweep", "sm_90"), DEVICE, entropy=True, argmax=True)
    yield Case("combine", "entropy, argmax", combine_launch(sweep.arguments["parts"], 0))
    bounds, index = empty(2 * PAIRS + 1, dtype=torch.int32), empty(PAIRS, 2, dtype=torch.int64)
    launch = check_launch(h.target, -100, VOCABULARY, bounds, index, 2 * PAIRS)
    yield Case("check", "bounds and pairs", launch)
    yield from pair_cases()


def pair_call(pairs: int) -> PairCall:
    """The loss of sums of both sides with everything that may be switched on."""
    column = empty(pairs)
    return PairCall(
        logp=column, rejected_logp=column, cu_seqlens=None, counted=None, chosen=None,
        rejected=None,
        ref_chosen_logps=column, ref_rejected_logps=column, beta=None, margin=column,
        tie=empty(pairs, dtype=torch.bool), weight=column, chosen_tokens=column, num_pairs=empty(),
        num_tokens=None, loss_type="sigmoid", sft="token", average=False,
        numbers=list(Numbers(0.1, 0.25, 0.3, 0.1, 0.5, 0.5, -1.0, -1.0)),
    )  # fmt: skip


def row_call(pairs: int) -> PairCall:
    """The same of rows; the chosen tokens are counted."""
    bounds = empty(2 * pairs + 1, dtype=torch.int32)
    logp = {"logp": empty(ROWS), "rejected_logp": None, "cu_seqlens": bounds}
    counted = empty(ROWS, dtype=torch.bool)
    return pair_call(pairs)._replace(**logp, counted=counted, chosen_tokens=None)


def pair_cases() -> Iterator[Case]:
    """The kernel of the loss in each of the forms it is called in."""
    sums, rows, index = pair_call(PAIRS), row_call(PAIRS), empty(PAIRS, 2, dtype=torch.int64)
    named = {"chosen": index[:, 0], "rejected": index[:, 1]}
    forms = {
        "answers": sums._replace(logp=empty(2 * PAIRS), rejected_logp=None, **named),
        "rows, shared answers": rows._replace(**named),
        "all rows": rows._replace(counted=None),
        "rows, means": rows._replace(loss_type="simpo", sft="sequence", average=True),
        "rows of one pair": row_call(1),
        "sums of one pair": pair_call(1),
    }
    for loss_type in LOSS_TYPES:
        forms[f"sums, {loss_type}"] = sums._replace(loss_type=loss_type)
        forms[f"rows, {loss_type}"] = rows._replace(loss_type=loss_type)
    for variant, call in forms.items():
        yield Case("mm_dpo", variant, mm_dpo_launch(call))


def disassembled(cubin: Path) -> list[str]:
    """The instructions and labels of a kernel."""
    command = [TOOLS / "nvdisasm", "-c", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if re.match(r"\s*/\*[0-9a-f]{4,}\*/|\.L", line)]


def innermost_loop(lines: list[str]) -> list[str]:
    """The shortest loop that multiplies matrices; empty where there is none."""
    labels = {line.split(":")[0]: n for n, line in enumerate(lines) if line.startswith(".L")}
    loops = []
    for n, line in enumerate(lines):
        jump = re.search(r"\bBRA\b.*\((\.L\w+)\)", line)
        start = labels.get(jump[1], n) if jump else n
        body = [one for one in lines[start : n + 1] if not one.startswith(".L")]
        if start < n and any(MULTIPLIES.search(one) for one in body):
            loops.append(body)
    return min(loops, key=len, default=[])


def count_nvidia(asm: dict[str, Any], target: GPUTarget) -> dict[str, Any]:
    """Registers, spills, stack and instructions of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(asm["ptx"])
        cubin.write_bytes(asm["cubin"])
        name = re.search(r"\.target (\w+)", asm["ptx"])
        assert name is not None
        assembler = get_ptxas(target.arch).path
        # As Triton calls it, to which registers and spills are sensitive.
        options = ["-v", "-lineinfo", "--regAllocOptLevel=2", f"--gpu-name={name[1]}"]
        command = [assembler, *options, ptx, "-o", Path(folder) / "again"]
        verbose = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", cubin]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = disassembled(cubin)
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", verbose)]
    loop = innermost_loop(lines)
    return {
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
        "stack_bytes": max(map(int, re.findall(r"STACK:(\d+)", usage))),
        "spilled_bytes": sum(spills),
        "instructions": sum(not line.startswith(".L") for line in lines),
        "loop_instructions": len(loop),
        "loop_multiplies": sum(bool(MULTIPLIES.search(line)) for line in loop),
        "stores": stores(asm["ptx"]),
        "uses": [name for name in MARKS if name in asm["ptx"]],
    }


def stores(ptx: str) -> dict[str, int]:
    """Stores to global memory by their width in bits."""
    found = re.findall(r"\bst\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    widths = sorted(int(lanes or 1) * int(bits) for lanes, bits in found)
    return {str(width): widths.count(width) for width in dict.fromkeys(widths)}


def count_amd(text: str) -> dict[str, Any]:
    """Registers and spills, in the compiler's own words; loops are not taken apart."""

    def field(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s*(\d+)", text)), default=0)

    return {
        "registers": field("vgpr_count"),
        "stack_bytes": field("private_segment_fixed_size"),
        "spilled_bytes": 4 * (field("vgpr_spill_count") + field("sgpr_spill_count")),
        "instructions": len(re.findall(r"^\s+[vsdb]\w*_\w+ ", text, re.MULTILINE)),
        "loop_instructions": None,
        "loop_multiplies": len(re.findall(r"^\s+v_mfma", text, re.MULTILINE)),
    }


def compile_case(case: Case, architecture: str, dtype: str) -> dict[str, Any]:
    """One row: what the kernel of a case costs on an architecture."""
    target, launch = TARGETS[architecture], case.launch
    driver.set_active(NoDevice(target))
    begin = time.perf_counter()
    compiled = launch.kernel.run(
        grid=launch.grid,
        warmup=True,
        num_warps=launch.warps,
        num_stages=launch.stages,
        **launch.arguments,
    )
    seconds = time.perf_counter() - begin
    asm = compiled.asm
    counted = count_amd(asm["amdgcn"]) if "amdgcn" in asm else count_nvidia(asm, target)
    tile = launch.arguments.get("TILE")
    return {
        "kernel": case.kernel,
        "variant": case.variant,
        "architecture": architecture,
        "dtype": dtype,
        "tile": None if tile is None else f"{tile.rows}x{tile.columns}x{tile.inner}",
        "loads": None if tile is None else tile.loads,
        "warps": launch.warps,
        "stages": launch.stages,
        **counted,
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": SHARED_MEMORY[architecture],
        "compile_s": round(seconds, 2),
    }


def rows_of(part: str = "all") -> Iterator[dict[str, Any]]:
    """A row per kernel, variant, dtype and architecture; ``part`` as on the command line."""
    fast, nvidia = part == "fast", part in {"fast", "bfloat16"}
    for architecture in ("sm_80", "sm_90") if nvidia else TARGETS:
        dtypes = (torch.bfloat16,) if nvidia else (torch.bfloat16, torch.float16, torch.float32)
        for dtype in () if part == "pairs" else dtypes:
            cases = (head_cases, form_cases, *(() if fast else (kept_cases,)))
            for case in itertools.chain(*(cases_of(architecture, dtype) for cases_of in cases)):
                if not fast or (case.kernel, case.variant) in FAST:
                    yield compile_case(case, architecture, str(dtype).removeprefix("torch."))
        small = () if nvidia else pair_cases() if part == "pairs" else small_cases()
        for case in small:
            yield compile_case(case, architecture, "float32")


def main() -> int:
    """Compile, print, and write the record; the exit code says whether all kernels fit."""
    parser = argparse.ArgumentParser(description="compile the Triton kernels without a device")
    choice = parser.add_mutually_exclusive_group()
    for part, text in PARTS.items():
        choice.add_argument(f"--{part}", dest="part", action="store_const", const=part, help=text)
    part = parser.parse_args().part or "all"
    if INTERPRETED:
        print("unset TRITON_INTERPRET: interpreted kernels are not compiled", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for row in rows_of(part):
            rows.append(row)
            print(
                json.dumps(row) if part == "fast" else " ".join(map(str, row.values())), flush=True
            )
    if part != "fast":
        parameters = {
            "N": ROWS,
            "H": HIDDEN,
            "V": VOCABULARY,
            "C": CHUNK,
            "P": PAIRS,
            "triton": triton.__version__,
        }
        not_measured = ["time on any GPU", "occupancy and bank conflicts", "loops of gfx942"]
        name = {"pairs": "mm_dpo_compile", "all": "kernel_compile"}.get(
            part, f"kernel_compile_{part}"
        )
        print(write_record(name, parameters, rows, not_measured))
    bad = [r for r in rows if r["spilled_bytes"] or r["shared_bytes"] > r["shared_limit"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
