"""Compiles every kernel for a GPU of compute capability 9.0, where there is none: prints one line
each. What the interpreter lets pass, the compiler may not."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backends.llm.attention import triton_attention, triton_pointwise

SHAPE = {"H": 16, "K": 8, "D": 128, "Z": 16}
DECODE = SHAPE | {"D2": 128, "ROWS": 16, "BLOCK": 64}
B, F, N, L = "*bf16", "*fp32", "*i32", "*i64"


def compiled(kernel: Any, kinds: dict[str, str], constants: dict[str, Any], warps: int = 4) -> None:
    signature = {
        name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
    print(kernel.__name__, len(made.asm["ptx"]))


def main() -> None:
    attention = {"q": B, "keys": B, "values": B, "out": B, "contexts": N, "pages": N}
    numbers = {"width": "i32", "scale": "fp32"}
    for splits in (1, 8):
        kinds = attention | numbers | {"part": F, "part_stat": F}
        compiled(triton_attention.decode, kinds, DECODE | {"SPLITS": splits})
    merge = {"part": F, "part_stat": F, "out": B}
    compiled(triton_attention.merge, merge, {"D": 128, "D2": 128, "SPLITS": 6, "N2": 8})
    prefill = attention | numbers | {"starts": N, "sequences": "i32"}
    for size in (128, 64):
        constants = SHAPE | {"D": size, "D2": size, "TOKENS": 64, "ROWS": 128, "BLOCK": 64}
        compiled(triton_attention.prefill, prefill, constants, 8)
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
