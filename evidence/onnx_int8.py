"""int8 with dynamic activations beside onnxruntime's, at 1 to 1024 tokens, in under three minutes.

``python evidence/onnx_int8.py``, on a machine that does nothing else. Both have float32 on either
side, the same weight and the same number of threads. onnxruntime has the model that its own
``quantize_dynamic`` makes of a MatMul, with a scale for each output of the weight and one for the
activations of a whole call; hwbench has one for each token, and the errors of both are shown.

Medians of blocks of calls, visited in shuffled rounds. The threads of one library go on spinning
for a while after its last call: a visit rests first, then calls untimed, then times a block.
hwbench itself needs neither onnx nor onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import hwbench
from hwbench import environment

SIDES = ((1024, 1024), (4096, 1024))
TOKENS = (1, 16, 64, 256, 1024)
OURS = ("linear_dynamic", "linear_dynamic_7bit", "int_mm", "onednn")  # where they run
DENSE, THEIRS = "F.linear", "onnxruntime"
REST, UNTIMED, TIMED = 5e-3, 3e-3, 1e-2  # seconds of a visit
WARM, LEAST = 2, 10  # rounds that are not counted, and that are counted at least
Call = Callable[[], object]


def missing() -> str | None:
    """Why onnxruntime cannot be timed here, or None where it can."""
    absent = [name for name in ("onnx", THEIRS) if not importlib.util.find_spec(name)]
    if not absent:
        return None
    return f"it takes {' and '.join(absent)}, which this environment does not have."


def session(weight: Tensor) -> tuple[Any, list[str]]:
    """A session with y = x Wᵀ in int8, as onnxruntime's own tool makes it, and its operators.

    The operators are those that are left when onnxruntime has fused what it can.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [value("x", onnx.TensorProto.FLOAT, ["tokens", weight.shape[1]])],
        [value("y", onnx.TensorProto.FLOAT, ["tokens", weight.shape[0]])],
        [onnx.numpy_helper.from_array(weight.t().contiguous().numpy(), "w")],
    )
    with tempfile.TemporaryDirectory() as folder:
        plain, coded, fused = (Path(folder, f"{name}.onnx") for name in ("plain", "coded", "fused"))
        opset = [onnx.helper.make_opsetid("", 17)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), plain)
        quantize_dynamic(plain, coded, weight_type=QuantType.QInt8, per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # it warns that a model that is saved fits this machine
        options.optimized_model_filepath = str(fused)
        made = onnxruntime.InferenceSession(coded, options, providers=["CPUExecutionProvider"])
        return made, [node.op_type for node in onnx.load(fused).graph.node]


def repeated(call: Call, seconds: float) -> float:
    """Seconds a call of calls one after another, for so long."""
    begun, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        spent = time.perf_counter() - begun
        if spent >= seconds:
            return spent / count


def medians(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Seconds of each call, from as many shuffled rounds as there is time for."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, begun, turn = list(calls), time.perf_counter(), 0
    while turn < WARM + LEAST or time.perf_counter() - begun < seconds:
        random.Random(turn).shuffle(order)
        for name in order:
            time.sleep(REST)
            repeated(calls[name], UNTIMED)
            took = repeated(calls[name], TIMED)
            if turn >= WARM:
                taken[name].append(took)
        turn += 1
    return {name: median(values) for name, values in taken.items()}


def relative(found: Any, exact: Tensor) -> float:
    """The relative error of an output, by the Frobenius norm."""
    return float((torch.as_tensor(found).double() - exact).norm() / exact.norm())


def table(title: str, rows: dict[str, list[str]], tokens: Iterable[int]) -> str:
    """A table in Markdown, a row for each quantity and a column for each number of tokens."""
    heads = [title, *(f"{count} token{'s' if count > 1 else ''}" for count in tokens)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    return "\n".join(
        [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]
    )


def rows(found: list[dict[str, float]], errors: list[dict[str, float]]) -> dict[str, list[str]]:
    """Milliseconds, ours over onnxruntime's, and the errors of outputs; a dict for each column."""
    lines = {f"{name}, ms": [f"{1e3 * of[name]:.3f}" for of in found] for name in found[0]}
    ours = [name for name in OURS if name in found[0]]
    for name in ours:
        ratios = [of[name] / of[THEIRS] for of in found]
        lines[f"int8 {name} / {THEIRS}"] = [f"{ratio:.2f}" for ratio in ratios]
    best = [min(of[name] for name in ours) / of[THEIRS] for of in found]
    lines[f"the fastest of ours / {THEIRS}"] = [f"{ratio:.2f}" for ratio in best]
    for name in errors[0]:
        lines[f"error, {name}"] = [f"{of[name]:.4f}" for of in errors]
    return lines


def calls_of(weight: Tensor, x: Tensor, layers: dict[str, Any], made: Any) -> dict[str, Call]:
    """What is timed: the dense product, ours and onnxruntime's."""
    array = x.numpy()

    def ours(layer: Any) -> Call:
        def call() -> object:
            with torch.no_grad():
                return layer(x)

        return call

    calls: dict[str, Call] = {DENSE: lambda: functional.linear(x, weight)}
    calls |= {name: ours(layer) for name, layer in layers.items()}
    return {**calls, THEIRS: lambda: made.run(None, {"x": array})[0]}


def measured(sides: tuple[int, int], seconds: float, made: Any, weight: Tensor) -> str:
    """The table of one shape."""
    kind = hwbench.get_format("quantized")
    made_by = {name: kind.from_knobs(*sides, kernel=name) for name in OURS}
    layers = {
        name: f.project(weight).trust_versions()
        for name, f in made_by.items()
        if f.unsupported("cpu", torch.float32, "forward") is None
    }
    found, errors = [], []
    for tokens in TOKENS:
        x = torch.randn(tokens, sides[1], generator=torch.Generator().manual_seed(0))
        exact = x.double() @ weight.double().mT
        calls = calls_of(weight, x, layers, made)
        errors.append({n: relative(call(), exact) for n, call in calls.items() if n != DENSE})
        found.append(medians(calls, seconds))
    return table(f"{sides[0]}x{sides[1]}", rows(found, errors), TOKENS)


def compared(seconds: float) -> None:
    """Print a table for each shape, and what stood beside ours."""
    print(f"{environment.cpu_facts()['name']}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}")  # fmt: skip
    if reason := missing():
        print(f"onnxruntime is unsupported: {reason}")
        return
    for sides in SIDES:
        weight = torch.randn(*sides, generator=torch.Generator().manual_seed(1)) * sides[1] ** -0.5
        made, operators = session(weight)
        print(f"onnxruntime {importlib.metadata.version(THEIRS)} runs {', '.join(operators)}")
        print(f"\n{measured(sides, seconds, made, weight)}\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=13.0, help="for each shape and tokens")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compared(given.seconds)


if __name__ == "__main__":
    main()
