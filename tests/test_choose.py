"""``hwbench choose``: the knapsack against every choice there is, plans, and a tiny encoder."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _compress import ENCODER, encoder
from hypothesis import given
from hypothesis import strategies as st

from hwbench.errors import HwbenchError, UsageError
from hwbench.store import read_run
from hwbench.studies import _knapsack, choose
from hwbench.studies._knapsack import Option
from hwbench.studies.choose import Budget, Costs, Layer

# --- the knapsack ---------------------------------------------------------------------------------

_NUMBER = st.integers(0, 1000).map(float)
_GROUPS = st.lists(
    st.lists(st.builds(Option, cost=_NUMBER, loss=_NUMBER), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def least(groups: list[list[Option]], budget: float) -> float | None:
    """The least loss of all choices that fit, one by one."""
    sums = (
        (sum(o.cost for o in picked), sum(o.loss for o in picked))
        for picked in itertools.product(*groups)
    )
    return min((loss for cost, loss in sums if cost <= budget), default=None)


@given(_GROUPS, st.integers(0, 3000))
def test_the_solver_finds_the_least_of_all_choices(groups, budget):
    solution = _knapsack.solve(groups, budget)
    expected = least(groups, budget)
    if solution is None:
        assert expected is None
        return
    picked = [group[i] for group, i in zip(groups, solution.chosen, strict=True)]
    assert sum(option.cost for option in picked) <= budget * (1 + 1e-6)
    assert sum(option.loss for option in picked) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert solution.gap <= 1e-6


def test_a_budget_that_a_real_model_has_is_solved_to_the_end():
    """Two hundred layers with thirty options each; the gap is proven, and greedy is not better."""
    rng = random.Random(3)
    groups = [
        [Option(10 * d * (0.8 + 0.4 * rng.random()), (1 - d) ** 2 * rng.random())
         for d in [1.0, *(rng.random() for _ in range(29))]]
        for _ in range(200)
    ]  # fmt: skip
    budget = 0.5 * sum(group[0].cost for group in groups)
    solution = _knapsack.solve(groups, budget)
    assert solution is not None
    assert solution.gap < 1e-4
    picked = [group[i] for group, i in zip(groups, solution.chosen, strict=True)]
    assert sum(o.cost for o in picked) <= budget * (1 + 1e-6)
    price = 0.05  # any price of a unit of cost bounds the loss from below
    bound = sum(min(o.loss + price * o.cost for o in group) for group in groups) - price * budget
    assert sum(o.loss for o in picked) >= bound


def test_an_option_that_another_beats_in_both_is_left_out():
    group = [Option(2, 2), Option(1, 1), Option(3, 0), Option(1, 5), Option(3, 0)]
    assert _knapsack.undominated(group) == [1, 2]


def test_what_the_solver_prints_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ctypes

    import scipy.optimize

    real = scipy.optimize.milp

    def loud(*arguments: Any, **named: Any) -> Any:
        ctypes.CDLL(None).puts(b"HighsMipSolverData")
        return real(*arguments, **named)

    monkeypatch.setattr(scipy.optimize, "milp", loud)
    assert _knapsack.solve([[Option(1, 1), Option(2, 0)]], 2) is not None
    print("after")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "after\n"


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "share"),
    [
        ("bytes=50%", "bytes", 0.5),
        ("time=-30%", "time", 0.7),
        ("time=−30%", "time", 0.7),  # a minus sign as a page prints it
        ("params = 12.5 %", "params", 0.125),
        ("time=100%", "time", 1.0),
    ],
)
def test_a_budget_is_a_share_of_what_dense_costs(text, kind, share):
    actual = Budget.parse(text)
    assert actual.kind == kind
    assert actual.share == pytest.approx(share)
    assert Budget.parse(str(actual)) == actual


@pytest.mark.parametrize("text", ["", "50%", "bytes", "bytes=50", "bytes=0%", "bytes=101%",
                                  "time=-100%", "size=50%", "bytes=x%", "bytes=50%%"])  # fmt: skip
def test_what_is_no_budget_is_one_sentence(text):
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)


# --- choices --------------------------------------------------------------------------------------


def costs(seconds: float, size: float, loss: float) -> Costs:
    return Costs(seconds, size, size / 4, loss)


def layer(name: str, half: float, quarter: float) -> Layer:
    options = {"dense": costs(4, 100, 0), "half": costs(2, 50, half), "q": costs(1, 25, quarter)}
    return Layer(name, (8, 8), options)


LAYERS = [layer("a", 0.3, 0.9), layer("b", 0.1, 0.2)]


def test_what_loses_less_is_cut_more():
    choice = choose.choose(LAYERS, Budget("bytes", 0.625))
    assert choice.picked == {"a": "dense", "b": "q"}
    assert choice.planned.loss == pytest.approx(0.2)
    assert (choice.single, choice.alone.loss) == ("half", pytest.approx(0.4))
    assert choice.planned.bytes == 125


@pytest.mark.heavy
def test_the_plan_is_never_worse_than_the_best_single_format():
    rng = random.Random(1)
    for _ in range(30):
        layers = [
            Layer(str(n), (8, 8), {"dense": costs(4, 100, 0)} | {
                str(d): costs(4 * rng.random(), d, rng.random()) for d in (20, 40, 80)
            })
            for n in range(6)
        ]  # fmt: skip
        for kind, share in itertools.product(("bytes", "time", "params"), (0.5, 0.7, 0.9)):
            try:
                choice = choose.choose(layers, Budget(kind, share))
            except UsageError:
                continue
            assert choice.planned.of(kind) <= share * choice.dense.of(kind) * (1 + 1e-6)
            if choice.alone is not None:
                assert choice.planned.loss <= choice.alone.loss * (1 + 1e-6)


def test_one_format_that_wins_everywhere_is_told():
    layers = [
        Layer(n, (8, 8), {"dense": costs(4, 100, 0), "half": costs(2, 50, 0.1)}) for n in "ab"
    ]
    assert choose.choose(layers, Budget("bytes", 0.5)).wins_everywhere == "half"
    assert choose.choose(LAYERS, Budget("bytes", 0.625)).wins_everywhere is None


def test_a_budget_that_cannot_be_met_says_what_can():
    with pytest.raises(UsageError, match=r"cannot be met: .* at least 25 % of their bytes"):
        choose.choose(LAYERS, Budget("bytes", 0.2))
    assert choose.choose(LAYERS, Budget("bytes", 0.25)).wins_everywhere == "q"


# --- a tiny encoder, from the command line --------------------------------------------------------

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def asked(tiny: Path, tmp_path: Path) -> list[str]:
    return [
        "choose", "--model", str(tiny), "--format", "low_rank", "--density", "0.9,0.5",
        "--device", "fake", "--replicates", "1", "--runs", str(tmp_path / "runs"),
        "--out", str(tmp_path / "plan.json"),
    ]  # fmt: skip


def test_a_plan_is_made_applied_and_made_again(
    hwbench: Call, asked: list[str], tiny: Path, tmp_path: Path
) -> None:
    from hwbench.workloads._bert import Bert

    out = tmp_path / "out"
    code, outcome, error = hwbench(*asked, "--budget", "bytes=80%", "--apply", str(out))
    assert code == 0, error
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["predicted"]["bytes"] <= 0.8 * plan["dense"]["bytes"]
    assert plan["gap"] <= 1e-6
    assert f"The model is in {out}" in outcome
    assert "The whole model: embedding cosine" in outcome
    import hwbench as package

    back = package.load_converted(out, Bert(ENCODER).eval())
    written = {n for n, m in back.named_modules() if isinstance(m, package.Linear)}
    single = json.loads((tmp_path / "plan-single.json").read_text())
    assert written in ({*plan["layers"]}, {*single["layers"]})
    ids, mask = Bert.tokens(tiny, ["a few words", "some more of them"])
    assert torch.isfinite(back(ids, mask)).all()

    code, again, error = hwbench("choose", "--plan", str(tmp_path / "plan.json"), "--json")
    assert code == 0, error
    assert json.loads(again)["layers"] == plan["layers"]
    anew = ["--from", plan["run"], "--budget", "bytes=100%", "--out", str(tmp_path / "whole.json")]
    code, outcome, error = hwbench("choose", *anew)
    assert code == 0, error
    assert outcome.startswith("One format wins everywhere: dense.")


def test_the_errors_and_times_of_a_run_are_those_of_its_cases(
    hwbench: Call, asked: list[str], tmp_path: Path
) -> None:
    assert hwbench(*asked, "--budget", "bytes=90%", "--objective", "error")[0] == 0
    (path,) = (tmp_path / "runs").glob("*.jsonl")
    run = read_run(path)
    layers = choose.layers_of(run)
    assert len(layers) == 6
    for layer in layers:
        assert set(layer.options) == {"dense", "low_rank density=0.5", "low_rank density=0.9"}
        assert layer.options["dense"].loss < 1e-12
        assert layer.options["dense"].bytes == 4 * layer.shape[0] * layer.shape[1]
        assert layer.options["low_rank density=0.9"].loss > 0
        assert (
            layer.options["low_rank density=0.9"].loss < layer.options["low_rank density=0.5"].loss
        )
    counts = {p.case.count for p in run.planned.values() if p.case.workload == "linear"}
    assert counts == {4, 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "bytes=2%"], "cannot be met"),
        (["--budget", "size=2%"], "Unknown budget"),
        ([], "--budget is needed"),
        (
            ["--budget", "bytes=50%", "--objective", "kl"],
            "needs a model that predicts the next token",
        ),
        (["--budget", "bytes=50%", "--objective", "ppl"], "Unknown objective 'ppl'"),
        (["--budget", "bytes=50%", "--format", "low_rnk"], "did you mean 'low_rank'"),
        (["--budget", "bytes=50%", "--density", "2"], "--density is above 0"),
        (["--budget", "bytes=50%", "--plan", "x.json"], "--plan takes what was asked for from its"),
        (["--budget", "bytes=50%", "--model", "/nowhere"], "There is no folder"),
        (["--budget", "bytes=50%", "--from", "x.jsonl"], "leave --model, --format, --density, "),
        (["--budget", "bytes=50%", "--density", "nan"], "--density takes finite numbers"),
    ],
)
def test_a_mistake_is_one_sentence(
    hwbench: Call, asked: list[str], arguments: list[str], words: str
) -> None:
    code, _, error = hwbench(*asked, *arguments)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


GIVEN = {
    "model": "x", "objective": "error", "format": "low_rank", "density": "0.5", "tokens": "128",
    "replicates": "3", "budget": "bytes=50%", "from": "x.jsonl", "out": "plan.json",
}  # fmt: skip
"""Options that say what is asked, also with the values that they have where they are left out."""


@pytest.mark.parametrize(
    ("first", "name"),
    [
        *(("--from", name) for name in GIVEN if name not in ("budget", "from", "out")),
        *(("--plan", name) for name in GIVEN),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    hwbench: Call, first: str, name: str
) -> None:
    needed = ["--budget", "bytes=50%"] if first == "--from" else []
    code, _, error = hwbench("choose", first, "none.json", *needed, f"--{name}", GIVEN[name])
    assert code == 2
    assert f"{first} takes what was asked for from its file; leave --{name} out." in error
    assert error.count("\n") == 1


def test_an_encoder_that_is_quantised_is_one_sentence(
    hwbench: Call, asked: list[str], tiny: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(tiny, folder)
    asked[asked.index(str(tiny))] = str(folder)
    values = load_file(folder / "model.safetensors")
    coded = {n: v.to(torch.int8) if n.endswith("query.weight") else v for n, v in values.items()}
    save_file(coded, folder / "model.safetensors")
    code, outcome, error = hwbench(*asked, "--budget", "bytes=80%")
    assert code == 2, outcome
    assert "as I8, which is quantised" in error
    assert error.count("\n") == 1


def _plan(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "model": "", "shapes": {"a": [2, 2]}, "layers": {}, **changes}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "is no plan of hwbench choose"),
        (_plan(shapes={"a": [2]}), "gives 'a' no shape"),
        (_plan(shapes={"a": "2x2"}), "gives 'a' no shape"),
        (_plan(layers={"a": {}}), "gives 'a' no format"),
        (_plan(), "no plan of this version"),
    ],
)
def test_a_file_that_is_no_plan_is_one_sentence(told, words, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=words):
        choose.again(path)


def test_a_plan_that_was_changed_is_told(hwbench: Call, asked: list[str], tmp_path: Path) -> None:
    assert hwbench(*asked, "--budget", "bytes=60%")[0] == 0
    path = tmp_path / "plan.json"
    document = json.loads(path.read_text())
    document["layers"].popitem()
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="it was changed"):
        choose.again(path)


# --- the error of a layer -------------------------------------------------------------------------


def test_the_error_of_a_layer_is_that_of_its_output(tiny: Path) -> None:
    from _scored import described, scored, unsupported, workload
    from _synthetic import scored_case

    from hwbench.workloads import _reading

    name = "encoder.layer.0.attention.self.query"
    case = scored_case("layer_error", "low_rank", 16, model=str(tiny), layer=name)
    model, inputs = _reading.read(str(tiny))
    weight, rows = model.linears()[name].weight.detach(), inputs[name]
    near = described(case).project(weight, activations=rows[0::2]).to_dense()
    x = rows[1::2].double()
    expected = torch.linalg.norm(x @ (weight - near).double().mT)
    expected = float(expected.detach() / torch.linalg.norm(x @ weight.double().mT))
    assert scored(case)["score"] == pytest.approx(expected, rel=1e-5)
    assert unsupported(case) is None
    for layer, words in (("encoder.x", "Unknown layer"), ("encoder.layer.0.output.dense", "16×32")):
        other = scored_case("layer_error", "low_rank", 16, model=str(tiny), layer=layer)
        assert words in str(unsupported(other))
    bare = scored_case("layer_error", "low_rank", 16, model=str(tiny))
    with pytest.raises(HwbenchError, match="needs the name of a layer"):
        workload(bare).check(bare)


def test_the_output_is_judged_with_this_layer_alone_changed(tiny: Path) -> None:
    from _scored import described, scored
    from _synthetic import scored_case

    from hwbench.workloads import _reading

    name = "encoder.layer.0.attention.self.value"
    options = {"model": str(tiny), "layer": name, "judged": "output"}
    case = scored_case("layer_error", "low_rank", 16, **options)
    model, inputs = _reading.read(str(tiny))
    before = model.linears()[name].weight.clone()
    values = scored(case)["score"]
    assert torch.equal(model.linears()[name].weight, before)
    assert scored(scored_case("layer_error", "dense", 16, **options))["score"] == 0
    changed = copy.deepcopy(model)
    near = described(case).project(before, activations=inputs[name][0::2])
    changed.get_submodule("encoder.layer.0.attention.self").value = near
    near.bias = model.linears()[name].bias
    ids, mask, expected = _reading.last_states(str(tiny))
    with torch.no_grad():
        moved = changed.states(ids, mask)[-1][mask] - expected
    assert values == pytest.approx(float(moved.norm() / expected.norm()), rel=1e-3)


def test_the_objective_stands_in_the_plan(hwbench: Call, asked: list[str], tmp_path: Path) -> None:
    code, outcome, error = hwbench(*asked, "--budget", "bytes=60%", "--objective", "output")
    assert code == 0, error
    assert "the model's relative error" in outcome
    assert json.loads((tmp_path / "plan.json").read_text())["objective"] == "output"
    choose.again(tmp_path / "plan.json")


def test_layers_that_share_a_weight_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    from hwbench.workloads import _apply, _reading

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def linears(self) -> dict[str, nn.Linear]:
            return {"first": self.first, "second": self.second}

        def inside(self) -> nn.Module:
            return self

    seen = {name: torch.ones(2, 8) for name in ("first", "second")}
    monkeypatch.setattr(_reading, "unreadable", lambda model: None)
    monkeypatch.setattr(_reading, "read", lambda model: (Tied(), seen))
    with pytest.raises(
        UsageError, match="first cannot be converted: shares its weight with second"
    ):
        _apply.layers("tied")


def test_a_budget_without_end_is_one_short_sentence() -> None:
    with pytest.raises(UsageError, match="at most 100 %") as raised:
        Budget.parse(f"bytes={'9' * 300}%")
    assert len(str(raised.value)) < 250
