"""The two tables of the data stream (docs/data_stream.md §3 and §6), and the two files made from them.

    python tools/stream_tables.py > csrc/common/stream/tables.h
    python tools/stream_tables.py --python > toykern/data/stream_tables.py

The tables are part of the definition of stream version 1: the committed header is the definition, this file
says where its numbers come from. `tests/test_stream_oracle.py` checks that the two agree, and how accurate
they are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

LOG2_SEGMENTS = 16
LOG2_DEGREE = 5
HALF_NORMAL_SEGMENTS = 4
HALF_NORMAL_DEGREE = 4


def _power_coefficients(function: Callable[[float], float], degree: int) -> np.ndarray:
    """Coefficients (constant first) of the Chebyshev interpolant of `function` on [0, 1]."""
    chebyshev = np.polynomial.chebyshev.Chebyshev.interpolate(
        np.vectorize(function), degree, domain=[0.0, 1.0]
    )
    return chebyshev.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef


def log2_table() -> list[list[int]]:
    """[16][6] unsigned: c0 in units of 2⁻³², |c1| … |c5| in units of 2⁻³⁵ (signs alternate from c1 > 0)."""
    rows = []
    for segment in range(LOG2_SEGMENTS):
        coefficients = _power_coefficients(
            lambda t, s=segment: math.log2(1.0 + (s + t) / LOG2_SEGMENTS), LOG2_DEGREE
        )
        signs = [1, 1, -1, 1, -1, 1]
        row = [round(signs[k] * c * 2.0 ** (32 if k == 0 else 35)) for k, c in enumerate(coefficients)]
        rows.append([max(0, value) for value in row])
    return rows


def half_normal_table() -> np.ndarray:
    """float32 [128, 5]: the quantile of |N(0, 1)| by upper tail probability, four segments to an octave."""
    normal = NormalDist()

    def quantile(tail: float) -> float:
        return -normal.inv_cdf(tail / 2.0) if tail < 1.0 else 0.0

    rows = []
    for octave in range(32):
        for segment in range(HALF_NORMAL_SEGMENTS):
            rows.append(
                _power_coefficients(
                    lambda t, z=octave, s=segment: quantile(
                        2.0 ** -(z + 1) * (1.0 + (s + t) / HALF_NORMAL_SEGMENTS)
                    ),
                    HALF_NORMAL_DEGREE,
                )
            )
    return np.array(rows).astype(np.float32)


def header() -> str:
    """The text of csrc/common/stream/tables.h."""
    lines = [
        "// Made by tools/stream_tables.py; part of the definition of stream version 1 "
        "(docs/data_stream.md).",
        "// Coefficient-major, so that a lane permutation can pick a segment's coefficient "
        "from one register.",
        "#pragma once",
        "#include <cstdint>",
        "",
        "#if defined(__CUDACC__)",
        "#define TOYKERN_TABLE static __device__ const",
        "#else",
        "#define TOYKERN_TABLE constexpr",
        "#endif",
        "",
        "namespace toykern {",
        "",
        "// log2(1 + x) on 16 segments: c0 in units of 2^-32, |c1| ... |c5| in units of 2^-35.",
        "TOYKERN_TABLE uint32_t kLog2Table[6][16] = {",
    ]
    table = log2_table()
    for k in range(LOG2_DEGREE + 1):
        lines.append("    {" + ", ".join(f"{row[k]}u" for row in table) + "},")
    lines += [
        "};",
        "",
        "// Quantile of |N(0, 1)| by upper tail probability: octave, quarter of the octave; a0 ... a4.",
        "TOYKERN_TABLE float kHalfNormalTable[5][128] = {",
    ]
    half_normal = half_normal_table()
    for k in range(HALF_NORMAL_DEGREE + 1):
        lines.append("    {" + ", ".join(float(v).hex() + "f" for v in half_normal[:, k]) + "},")
    lines += ["};", "", "}  // namespace toykern"]
    return "\n".join(lines)


def python_module() -> str:
    """The text of toykern/data/stream_tables.py: the half-normal table, for initial weights in NumPy."""
    lines = [
        '"""The half-normal table of the data stream (docs/data_stream.md §6), for NumPy.',
        "",
        "Made by tools/stream_tables.py --python; part of the definition of stream version 1.",
        '"""',
        "",
        "import numpy as np",
        "",
        "# Quantile of |N(0, 1)| by upper tail probability: the bits of a0 ... a4, in single precision,",
        "# for each octave and quarter of the octave.",
        "# fmt: off",
        "HALF_NORMAL_TABLE = np.array([",
    ]
    for row in half_normal_table().view(np.uint32):
        lines.append("    [" + ", ".join(f"0x{int(bits):08x}" for bits in row) + "],")
    lines += ["], dtype=np.uint32).view(np.float32)", "# fmt: on"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the file made from the tables of the data stream.")
    parser.add_argument("--python", action="store_true", help="the Python module instead of the C++ header")
    print(python_module() if parser.parse_args().python else header())
