"""Compiles every kernel for a GPU of compute capability 9.0, where there is none: prints one line
each. What the interpreter lets pass, the compiler may not; and the shared memory of the smallest
GPUs has to do for tiles of any head."""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backends.llm.attention import Geometry, triton_attention, triton_pointwise
from backends.llm.attention.triton import TritonKernels

SHAPE = {"H": 16, "K": 8, "D": 128, "Z": 16}
DECODE = SHAPE | {"D2": 128, "ROWS": 16, "BLOCK": 64}
B, F, N, L = "*bf16", "*fp32", "*i32", "*i64"
# Of compute capability 8.6 and 8.9, per program.
SHARED = 99 << 10


def compiled(kernel: Any, kinds: dict[str, str], constants: dict[str, Any], warps: int = 4) -> None:
    signature = {
        name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names
    }
    # As at run time: torch's memory begins at such addresses, without which nothing is pipelined.
    aligned: Any = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED, made.metadata.shared
    print(kernel.__name__, made.metadata.shared, len(made.asm["ptx"]))


def main() -> None:
    attention = {"q": B, "keys": B, "values": B, "out": B, "contexts": N, "pages": N}
    numbers = {"width": "i32", "scale": "fp32"}
    for splits in (1, 8):
        kinds = attention | numbers | {"part": F, "part_stat": F}
        compiled(triton_attention.decode, kinds, DECODE | {"SPLITS": splits})
    merge = {"part": F, "part_stat": F, "out": B}
    compiled(triton_attention.merge, merge, {"D": 128, "D2": 128, "SPLITS": 6, "N2": 8})
    prefill = attention | numbers | {"starts": N, "sequences": "i32"}
    for size, kind in ((128, torch.bfloat16), (64, torch.bfloat16), (128, torch.float32)):
        positions, rows = TritonKernels(Geometry(16, 8, size, 1e-5), 1).tile(kind)
        constants = SHAPE | {"D": size, "D2": size, "TOKENS": rows // 2, "ROWS": rows}
        given = {
            name: F if of == B and kind == torch.float32 else of for name, of in prefill.items()
        }
        compiled(triton_attention.prefill, given, constants | {"BLOCK": positions}, rows // 16)
    norm = {"x": B, "delta": B, "weight": B, "out": B, "eps": "fp32"}
    for adds in (True, False):
        compiled(triton_pointwise.add_norm, norm, {"C": 1000, "C2": 1024, "ADDS": adds})
    names = ("qkv", "q_out", "keys", "values", "cosine", "sine", "q_weight", "k_weight")
    write = dict.fromkeys(names, B) | {"slots": L, "eps": "fp32"}
    for normed in (True, False):
        compiled(triton_pointwise.write_kv, write, SHAPE | {"F2": 64, "NORMS": normed})
    compiled(triton_pointwise.gate, {"gate_up": B, "out": B}, {"I": 3000, "BLOCK": 1024})


if __name__ == "__main__":
    main()
