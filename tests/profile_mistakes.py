"""Every mistake with a profile that we know of: a model of a few nodes, the shapes asked for, and what check() says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtlab.toys import toy


@dataclass(frozen=True)
class Mistake:
    """`says` is part of check()'s sentence; `node` the node that it names."""

    name: str
    model: Callable[[], onnx.ModelProto]
    shapes: Any
    says: str
    node: str = ""


def t(text: str, **weights: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: toy(text, **weights)


def sides(*sizes: tuple[int, int]) -> dict[str, Any]:
    """min, opt, max of an image: (batch, side)."""
    return {"x": tuple((batch, 3, side, side) for batch, side in sizes)}


def ints(*values: int) -> list[int]:
    return list(values)


CONV = t("c (float[N,3,H,W] x) => (float[N,8,H,W] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }", w=(8, 3, 3, 3))
FIXED = t("c (float[N,3,8,8] x) => (float[N,8,8,8] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }", w=(8, 3, 3, 3))
STATIC = t("c (float[2,4] x) => (float[2,4] y) { y = Relu(x) }")
ADD = t("a (float[N,4] p, float[M,4] q) => (float[K,4] y) { y = Add(p, q) }")
NAMED = t("a (float[N,4] p, float[N,4] q) => (float[N,4] y) { y = Add(p, q) }")
HEAD = t("h (float[N,3,H,W] x) => (float[N,5] y) { f = Flatten(x) y = Gemm(f, w) }", w=(192, 5))
SKIP = t(
    "u (float[N,3,H,W] x) => (float[N,3,H,W] y) { d = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)"
    ' u = Resize<mode="nearest">(d,,scales) y = Add(u, x) }',
    scales=[1.0, 1.0, 2.0, 2.0],
)
POSITIONS = t(
    "s (float[N,S,8] x) => (float[N,S,8] y) { n = Shape<start=1,end=2>(x) p = Slice(table, zero, n, zero)"
    " y = Add(x, p) }",
    table=(16, 8), zero=ints(0),
)  # fmt: skip
GATHERED = (
    "s (float[N,S,D] x) => (float[N,S,D] y) { n = Shape<start=1,end=2>(x) s = Squeeze(n) r = Range(zero, s, one)"
    " p = Gather(table, r) y = Add(x, p) }"
)
TABLE, WIDE_TABLE = (
    t(GATHERED.replace("D]", f"{width}]"), table=(rows, width), zero=np.int64(0), one=np.int64(1))
    for rows, width in ((16, 8), (600, 1024))
)
TOKEN = t("c (float[N,S,8] x) => (float[N,T,8] y) { y = Concat<axis=1>(cls, x) }", cls=(1, 1, 8))
EXPAND = t("r (float[1,8] x, int64[2] size) => (float[A,8] y) { e = Expand(x, size) y = Relu(e) }")
RESIZE = t('r (float[N,3,H,W] x, int64[4] size) => (float[N,3,A,B] y) { y = Resize<mode="nearest">(x,,,size) }')
MATMUL = t("a (float[N,S] p) => (float[N,4] y) { y = MatMul(p, w) }", w=(16, 4))
GRAM = t("c (float[S,1] x) => (float[S,S] y) { t = Transpose(x) m = MatMul(x, t) y = Relu(m) }")
SPLIT = t("c (float[N,8] x) => (float[a,8] y, float[b,8] z) { y, z = Split<axis=0>(x, sizes) }", sizes=ints(2, 2))
LSTM = t(
    "c (float[S,N,4] x) => (float[S,1,N,8] y) { y = LSTM<hidden_size=8>(x, w, r, b,, h, c) }",
    w=(1, 32, 4), r=(1, 32, 8), b=(1, 64), h=(1, 1, 8), c=(1, 1, 8),
)  # fmt: skip
NONZERO = t("c (float[N,8] x) => (int64[2,K] y) { y = NonZero(x) }")
NMS = t(
    "c (float[1,100,4] boxes, float[1,3,100] scores) => (int64[K,3] y)"
    " { y = NonMaxSuppression(boxes, scores, k, iou, least) }",
    k=ints(20), iou=[0.5], least=[0.3],
)  # fmt: skip
TOPK = t("c (float[N,S] x) => (float[N,5] y, int64[N,5] z) { y, z = TopK(x, k) }", k=ints(5))


def rows(name: str, low: int, opt: int, high: int, width: int = 4) -> dict[str, Any]:
    return {name: ((low, width), (opt, width), (high, width))}


def reshape(*target: int) -> Callable[[], onnx.ModelProto]:
    return t("r (float[N,4] x) => (float[M,K] y) { r = Reshape(x, s) y = Relu(r) }", s=ints(*target))


GOOD = sides((1, 8), (2, 8), (4, 8))
MISTAKES = [
    Mistake("min larger than opt", CONV, sides((4, 8), (2, 8), (4, 8)), "min is larger than opt in dimension 0"),
    Mistake("opt larger than max", CONV, sides((1, 8), (8, 8), (4, 8)), "opt is larger than max in dimension 0"),
    Mistake("wrong rank", CONV, {"x": ((1, 3, 8),) * 3}, "has 4 dimensions"),
    Mistake("ranks that differ", CONV, {"x": ((1, 3, 8), (1, 3, 8, 8), (1, 3, 8, 8))}, "differ in rank"),
    Mistake("an input that is not there", CONV, {**GOOD, "image": GOOD["x"]}, "no input 'image'"),
    Mistake("a misspelt input", CONV, {"X": GOOD["x"]}, "no input 'X'"),
    Mistake("no profile", CONV, None, "shapes= was not given"),
    Mistake("an input left out", ADD, rows("p", 1, 2, 4), "profile 0 does not name it"),
    Mistake("a fixed size asked otherwise", FIXED, sides((1, 8), (2, 16), (4, 16)), "Dimension 2 of input 'x'"),
    Mistake("no dynamic dimension", STATIC, rows("x", 1, 2, 4), "no dynamic dimension at all"),
    Mistake("a negative size", CONV, sides((-1, 8), (2, 8), (4, 8)), "a dimension cannot be -1"),
    Mistake("a size beyond 2^31", CONV, sides((1, 8), (2, 8), (2**31, 8)), "a dimension cannot be 2147483648"),
    Mistake("zeros", CONV, sides((0, 8), (0, 8), (0, 8)), "is empty"),
    Mistake("strings", CONV, {"x": ("1x3x8x8", "2x3x8x8", "4x3x8x8")}, "'1x3x8x8' is not a"),
    Mistake("floats", CONV, {"x": ((1.0, 3, 8, 8), (2.0, 3, 8, 8), (4.0, 3, 8, 8))}, "1.0 is not a whole number"),
    Mistake("two shapes", CONV, {"x": ((1, 3, 8, 8), (2, 3, 8, 8))}, "2 shapes instead of three"),
    Mistake("the second of two profiles is wrong", CONV, [GOOD, sides((8, 8), (2, 8), (16, 8))], "min is larger"),
    Mistake("the second of two profiles is empty", CONV, [GOOD, {}], "profile 1 does not name it"),
    Mistake("a gap between two profiles", CONV, [GOOD, sides((16, 8), (16, 8), (32, 8))], "Sizes 5 to 15"),
    Mistake("a profile twice", CONV, [GOOD, GOOD], "are the same"),
    Mistake("a batch written into a Reshape", reshape(1, 4), rows("x", 1, 2, 8), "8 elements into 4", "r"),
    Mistake("… that opt happens to fit", reshape(8, 4), rows("x", 1, 8, 8), "4 elements into 32", "r"),
    Mistake("a Reshape that needs pairs", reshape(-1, 8), rows("x", 1, 2, 8), "do not fill", "r"),
    Mistake("two inputs that disagree at opt", ADD, rows("p", 1, 4, 8) | rows("q", 1, 5, 8), "'p' 4×4, 'q' 5×4", "y"),
    Mistake("… one of them may be 1", ADD, rows("p", 1, 2, 4) | rows("q", 5, 6, 8), "'p' 2×4, 'q' 6×4", "y"),
    Mistake("… at max only", ADD, rows("p", 1, 4, 8) | rows("q", 1, 4, 16), "At max", "y"),
    Mistake("… and share a symbol", NAMED, rows("p", 1, 4, 8) | rows("q", 1, 5, 8), "one size of 2 inputs 'N'"),
    Mistake("a constant of batch 1 in a Concat", TOKEN, {"x": ((1, 4, 8), (2, 4, 8), (4, 4, 8))}, "'cls' 1×1×8", "y"),
    Mistake("a fixed Split", SPLIT, rows("x", 4, 8, 8, 8), "sum of 'split' (4)", "y"),
    Mistake("weights for another width", MATMUL, {"p": ((1, 8), (2, 32), (4, 32))}, "'p' 2×32, 'w' 16×4", "y"),
    Mistake("a head for one image side", HEAD, sides((1, 4), (2, 8), (4, 16)), "'f' 4×768, 'w' 192×5", "y"),
    Mistake("an initial state for batch 1", LSTM, {"x": ((3, 1, 4), (3, 2, 4), (3, 4, 4))}, "shape {1,2,8}", "y"),
    Mistake("past the position table (Slice)", POSITIONS, {"x": ((1, 1, 8), (1, 8, 8), (1, 32, 8))}, "'p' 16×8", "y"),
    Mistake("past the position table (Gather)", TABLE, {"x": ((1, 1, 8), (1, 8, 8), (1, 32, 8))}, "past the end of 16",
            "p"),
    Mistake("an odd side and a skip connection", SKIP, sides((1, 8), (1, 17), (1, 32)), "'u' 1×3×16×16", "y"),
    Mistake("… at max", SKIP, sides((1, 8), (1, 16), (1, 17)), "At max", "y"),
    Mistake("… between", SKIP, sides((1, 8), (1, 16), (1, 32)), "Only multiples of 2 run", "y"),
    Mistake("an image smaller than the kernel", t(
        "c (float[N,3,H,W] x) => (float[N,8,A,B] y) { a = Conv<kernel_shape=[7,7]>(x, w) y = Relu(a) }", w=(8, 3, 7, 7)
    ), sides((1, 4), (2, 16), (4, 32)), "larger than what it slides over", "a"),
    Mistake("fewer than k", TOPK, {"x": ((1, 3), (1, 8), (1, 16))}, "less than the requested k", "y"),
    Mistake("a shape tensor without values", EXPAND, None, "is a shape tensor: its values are sizes"),
    Mistake("too few values", RESIZE, {**GOOD, "size": ((8, 8), (16, 16), (32, 32))}, "holds 4 sizes"),
    Mistake("values that do not fit", EXPAND, {"size": ((1, 8), (2, 3), (4, 8))}, "min is larger than opt"),
    Mistake("values that no input broadcasts to", EXPAND, {"size": ((1, 1), (2, 3), (4, 8))}, "'size' = [2, 3]", "e"),
    Mistake("more than 2^31 elements", CONV, sides((1, 8), (2, 8), (4, 16384)), "3,221,225,472 elements"),
    Mistake("more than 2^31 elements inside", GRAM, {"x": ((1, 1), (128, 1), (65536, 1))}, "4,294,967,296", "m"),
    Mistake("NonZero", NONZERO, rows("x", 1, 2, 8, 8), "depends on the data", "y"),
    Mistake("NonMaxSuppression", NMS, None, "depends on the data", "y"),
]  # fmt: skip
