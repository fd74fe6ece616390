"""``hwbench.convert``: models with their linear layers in a format, whole, saved and loaded."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch
from _tiers import sampled
from torch import Tensor, nn
from torch.nn.utils import prune

import hwbench
from hwbench import plugins
from hwbench.errors import UnknownNameError, UsageError
from hwbench.formats._base import FORWARD, STEP, Format, Linear
from hwbench.formats.semi_structured import SemiStructured
from hwbench.workloads import _convert

NAMES = plugins.names("formats")


def runs_here(name: str, direction: str = FORWARD) -> bool:
    kind = plugins.load("formats", name, Format)
    example = kind.from_knobs(64, 64, **options(name))
    return example.unsupported("cpu", torch.float32, direction) is None


def options(name: str) -> dict[str, Any]:
    """A density, where the format has one."""
    kind = plugins.load("formats", name, Format)
    try:
        kind.from_knobs(64, 64, density=0.5)
    except UsageError:
        return {}
    return {"density": 0.5}


def unrounded(name: str) -> dict[str, Any]:
    """Those, with the first kernel that runs here and rounds no activations."""
    kind = plugins.load("formats", name, Format)
    for kernel in kind.KERNELS:
        actual = {**options(name), "kernel": kernel}
        f = kind.from_knobs(64, 64, **actual)
        if f.unsupported("cpu", torch.float32, FORWARD) is None:
            layer = f.random(dtype=torch.float32, generator=torch.Generator().manual_seed(0))
            if layer.tolerance(torch.float32) == 0:
                return actual
    raise AssertionError(f"every kernel of {name} rounds activations")


HERE = [name for name in NAMES if runs_here(name)]
TRAINED = [name for name in HERE if runs_here(name, STEP)]


class Small(nn.Module):
    """Token ids → logits, with a layer that shares its weight and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 64)
        self.up = nn.Linear(64, 96)
        self.down = nn.Linear(96, 64, bias=False)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


def small() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        return Small().eval()


IDS = torch.arange(12).view(2, 6)


def converted(model: nn.Module, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return hwbench.convert(model, **arguments)


def densified(model: nn.Module) -> nn.Module:
    """The model with each converted layer as a dense one of the matrix that it stands for."""
    actual = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            dense.weight = nn.Parameter(layer.to_dense().detach())
            if layer.bias is not None:
                dense.bias = nn.Parameter(layer.bias.detach())
            parent, _, last = name.rpartition(".")
            setattr(actual.get_submodule(parent), last, dense)
    return actual


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(5)
        return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=50, n_positions=32, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(5)
        return transformers.GPT2LMHeadModel(config).eval()


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(make, name, marks=[] if place % 4 == 2 * turn else pytest.mark.heavy)
        for place, name in enumerate(HERE)
        for turn, make in enumerate((llama, gpt2))
    ],
)
def test_logits_are_those_of_the_projected_dense_weights(name, make):
    model = make()
    new_model = converted(model, format=name, **unrounded(name))
    assert any(isinstance(each, Linear) for each in new_model.modules())
    with torch.no_grad():
        ours, expected = new_model(IDS).logits, densified(new_model)(IDS).logits
        assert float((ours - expected).abs().max()) < 1e-4
        assert not torch.equal(ours, model(IDS).logits) or name in ("dense", "packed_dense")


@pytest.mark.parametrize("name", HERE)
def test_every_layer_rounds_no_more_than_it_says(name):
    new_model, recorded = converted(small(), format=name, **options(name)), {}
    layers = [each for each in new_model.modules() if isinstance(each, Linear)]
    for each in layers:
        each.register_forward_hook(lambda layer, given, y: recorded.update({layer: (given[0], y)}))
    with torch.no_grad():
        new_model(IDS)
        assert list(recorded) == layers
        for layer, (x, y) in recorded.items():
            exact = nn.functional.linear(x, layer.to_dense(), layer.bias)
            assert float((y - exact).norm() / exact.norm()) <= 1e-5 + layer.tolerance(y.dtype)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(HERE)))
def test_what_cannot_run_here_is_one_sentence(name):
    with pytest.raises(UsageError, match="No layer can be converted; of up: ") as caught:
        converted(small(), format=name, **options(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HERE)
def test_saved_and_loaded_gives_the_same_outputs(name, tmp_path):
    new_model = converted(small(), format=name, **options(name))
    hwbench.save_converted(new_model, tmp_path / "kept")
    with torch.device("meta"):
        blank = Small().eval()
    back = hwbench.load_converted(tmp_path / "kept", blank)
    with torch.no_grad():
        assert torch.equal(back(IDS), new_model(IDS))
    assert back.head.weight is back.tokens.weight
    assert [n for n, p in back.named_parameters()] == [n for n, p in new_model.named_parameters()]
    assert all(
        a.requires_grad == b.requires_grad
        for a, b in zip(back.parameters(), new_model.parameters(), strict=True)
    )


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_loaded_model_generates_the_same_tokens(make, tmp_path):
    new_model = converted(make(), format="low_rank", density=0.5)
    hwbench.save_converted(new_model, tmp_path)
    back = hwbench.load_converted(tmp_path, make())
    ours, theirs = (
        each.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
        for each in (new_model, back)
    )
    assert torch.equal(ours, theirs)
    assert ours.shape[1] > IDS.shape[1]


@pytest.mark.parametrize("name", TRAINED)
def test_a_converted_model_learns(name):
    new_model = converted(small(), format=name, **options(name)).train()
    before = {n: p.detach().clone() for n, p in new_model.named_parameters()}
    optimizer = torch.optim.SGD(new_model.parameters(), lr=1e-3)
    losses, after = [], (IDS.flatten() + 1) % 40
    for _ in range(3):
        loss = nn.functional.cross_entropy(new_model(IDS).flatten(0, 1), after)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    moved = [n for n, p in new_model.named_parameters() if not torch.equal(p, before[n])]
    assert any(n.startswith("up.") for n in moved)
    assert "up.bias" in moved


# torch's tracer makes an object of a class of which torch asks that none be made.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", sampled(["low_rank", "csr", "monarch", "blast", "bsr"], 5))
def test_a_converted_model_is_traced_by_the_compiler(name):
    new_model = converted(small(), format=name, density=0.5)
    with torch.no_grad():
        expected = new_model(IDS)
        ours = torch.compile(new_model, backend="aot_eager")(IDS)
    assert float((ours - expected).abs().max()) < 1e-5


def test_biases_dtypes_modes_and_gradients_are_kept_and_the_model_is_left_alone():
    model = small().to(torch.bfloat16).train()
    model.up.requires_grad_(False)
    kept = copy.deepcopy(model.state_dict())
    new_model = converted(model, format="low_rank", density=0.5)
    assert torch.equal(new_model.up.bias, model.up.bias)
    assert new_model.up.bias is not model.up.bias
    assert new_model.down.bias is None
    assert new_model.up.left.dtype == torch.bfloat16
    assert new_model.up.training
    assert not any(p.requires_grad for p in new_model.up.parameters())
    assert all(p.requires_grad for p in new_model.down.parameters())
    assert isinstance(model.up, nn.Linear)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert new_model.tokens.weight is new_model.head.weight
    assert new_model.tokens.weight is not model.tokens.weight


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_weight_and_bias_each_keep_whether_they_learn(name, weight, bias, tmp_path):
    model = small()
    model.up.weight.requires_grad_(weight)
    model.up.bias.requires_grad_(bias)
    new_model = converted(model, format=name, **options(name))
    hwbench.save_converted(new_model, tmp_path)
    for each in (new_model, hwbench.load_converted(tmp_path, Small().eval())):
        learns = {n: p.requires_grad for n, p in each.up.named_parameters()}
        assert learns.pop("bias") == bias
        assert all(own == weight for own in learns.values())


def test_each_parameter_of_a_saved_layer_keeps_whether_it_learns(tmp_path):
    new_model = converted(small(), format="low_rank", density=0.5)
    new_model.up.left.requires_grad_(False)
    hwbench.save_converted(new_model, tmp_path)
    back = hwbench.load_converted(tmp_path, Small().eval())
    assert [n for n, p in back.up.named_parameters() if not p.requires_grad] == ["left"]


@pytest.mark.parametrize("trained", [True, False])
def test_files_with_one_flag_a_layer_are_still_read(trained, tmp_path):
    hwbench.save_converted(converted(small(), format="low_rank", density=0.5), tmp_path)
    described = json.loads((tmp_path / "hwbench.json").read_text())
    for entry in described["layers"].values():
        del entry["frozen"]
        entry["trained"] = trained
    (tmp_path / "hwbench.json").write_text(json.dumps(described))
    back = hwbench.load_converted(tmp_path, Small().eval())
    assert all(p.requires_grad == trained for p in back.up.parameters())


def test_a_layer_that_cannot_learn_in_its_format_is_frozen_and_named(monkeypatch):
    monkeypatch.setattr(SemiStructured, "unsupported", lambda *_: None)
    with pytest.warns(UserWarning, match=r"do not learn in .*: up, down \(semi_structured\)\."):
        new_model = hwbench.convert(small(), format="semi_structured", skip=["head"])
    assert [n for n, p in new_model.up.named_parameters() if p.requires_grad] == ["bias"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hwbench.convert(small().requires_grad_(False), format="semi_structured", skip=["head"])


class T5Like(nn.Module):
    """As T5DenseActDense of transformers, which asks a layer for the dtype of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wi = nn.Linear(64, 96, bias=False)
        self.wo = nn.Linear(96, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wi(x))
        if isinstance(self.wo.weight, Tensor) and x.dtype != self.wo.weight.dtype:
            x = x.to(self.wo.weight.dtype)
        return self.wo(x)


class MambaLike(nn.Module):
    """As a mixer of Mamba, which multiplies by the weight of a layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.dt_proj = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        return (self.dt_proj.weight @ x.mT).mT + self.dt_proj.bias


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("parent", [T5Like, MambaLike])
def test_a_parent_may_read_the_weight_of_a_converted_layer(name, parent, tmp_path):
    new_model = converted(parent(), format=name, **unrounded(name))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    y, expected = new_model(x), densified(new_model)(x)
    assert float((y - expected).detach().norm() / expected.detach().norm()) < 1e-5
    if name in TRAINED:
        y.square().sum().backward()
        assert all(p.grad is not None for p in new_model.parameters())
    hwbench.save_converted(new_model, tmp_path)
    back = hwbench.load_converted(tmp_path, parent())
    assert torch.allclose(back(x), y, atol=1e-6)


def test_calibration_keeps_copies_of_the_rows_that_it_looks_at():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            x.zero_()
            return y

    model = Overwriting()
    layers = _convert.planned(model, "dense")
    batch = torch.ones(2 * _convert.ROWS, 4)
    inputs = _convert.activations(model, [batch], layers)["up"]
    assert torch.equal(inputs, torch.ones(_convert.ROWS, 4))
    assert inputs.untyped_storage().nbytes() == inputs.nbytes


def test_activations_of_calibration_change_the_projection():
    batches = [IDS, (IDS,), {"ids": IDS}]
    plain = converted(small(), format="low_rank", density=0.3)
    model = small().train()
    result = converted(model, format="low_rank", density=0.3, calibration=batches)
    assert model.training
    assert not torch.equal(plain.up.to_dense(), result.up.to_dense())
    inputs = _convert.activations(model, batches, _convert.planned(model, "dense"))
    assert inputs["up"].shape == (36, 64)
    assert torch.equal(inputs["up"][:12], model.tokens(IDS).flatten(0, 1))


# --- what stays -----------------------------------------------------------------------------------


def test_a_tied_layer_stays_and_is_named():
    with pytest.warns(UserWarning, match=r"head \(shares its weight with tokens\)"):
        new_model = hwbench.convert(small(), format="low_rank", density=0.5)
    assert type(new_model.head) is nn.Linear


def test_what_is_skipped_stays_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new_model = hwbench.convert(small(), format="low_rank", density=0.5, skip=["head", "d*"])
    assert type(new_model.down) is nn.Linear
    assert isinstance(new_model.up, Linear)


def test_a_layer_that_does_not_fit_stays_and_is_named():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1))
    with pytest.warns(UserWarning, match=r"1 \(low_rank cannot reach density 0.1"):
        new_model = hwbench.convert(model, format="low_rank", density=0.1)
    assert type(new_model[1]) is nn.Linear


class Own(nn.Linear):
    """A linear layer with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_that_are_read_or_act_otherwise_stay():
    model = nn.ModuleDict(
        {
            "own": Own(8, 8),
            "attention": nn.MultiheadAttention(8, 2),
            "encoder": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            "plain": nn.Linear(8, 8),
        }
    ).eval()
    table = hwbench.convert(model, format="low_rank", density=0.9, dry_run=True)
    why = dict(zip(table["layer"], table["kept"], strict=True))
    assert why["plain"] == ""
    assert "forward pass of its own" in why["own"]
    assert "MultiheadAttention reads" in why["attention.out_proj"]
    assert "TransformerEncoderLayer reads" in why["encoder.linear1"]
    new_model = converted(model, format="low_rank", density=0.9)
    x = torch.ones(2, 3, 8)
    assert torch.equal(new_model["encoder"](x), model["encoder"](x))


def _replaced_forward(layer: nn.Linear) -> None:
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)  # type: ignore[method-assign]


ATTACHED: dict[str, tuple[Any, str]] = {
    "forward": (lambda m: m.register_forward_hook(lambda _, __, y: 2 * y), "hooks"),
    "forward_pre": (lambda m: m.register_forward_pre_hook(lambda _, x: (2 * x[0],)), "hooks"),
    "backward": (lambda m: m.register_full_backward_hook(lambda *_: None), "hooks"),
    "backward_pre": (lambda m: m.register_full_backward_pre_hook(lambda *_: None), "hooks"),
    "instance": (_replaced_forward, "forward pass was replaced"),
    "parametrised": (nn.utils.parametrizations.weight_norm, "parametrised"),
}


@pytest.mark.parametrize("attach", ATTACHED)
def test_a_layer_that_something_is_attached_to_stays_and_is_named(attach):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    act, why = ATTACHED[attach]
    act(model[0])
    with pytest.warns(UserWarning, match=rf"stay as they are: 0 \(.*{why}"):
        new_model = hwbench.convert(model, format="dense")
    assert isinstance(new_model[1], Linear)
    assert not isinstance(new_model[0], Linear)
    x = torch.ones(2, 64)
    assert torch.allclose(new_model(x), model(x), atol=1e-6)


@pytest.mark.parametrize("attach", ATTACHED)
def test_a_layer_that_something_is_attached_to_is_not_replaced_by_a_load(attach, tmp_path):
    hwbench.save_converted(converted(small(), format="low_rank", density=0.5), tmp_path)
    blank = Small()
    act, why = ATTACHED[attach]
    act(blank.up)
    with pytest.raises(UsageError, match=rf"up of the model cannot be replaced: .*{why}.*\.$"):
        hwbench.load_converted(tmp_path, blank)


@pytest.mark.filterwarnings("ignore:These layers stay as they are:UserWarning")
@pytest.mark.parametrize("skip", [[], ["0"]])
def test_a_pruned_layer_is_named_as_torch_cannot_copy_it(skip):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UsageError, match=r"0 holds a tensor that is computed .* prune\.remove\.$"):
        hwbench.convert(model, format="dense", skip=skip)
    prune.remove(model[0], "weight")
    x = torch.ones(2, 64)
    assert torch.allclose(hwbench.convert(model, format="dense")(x), model(x), atol=1e-6)


def test_a_dry_run_counts_bytes_also_of_what_has_no_values():
    with torch.device("meta"):
        model = Small()
    actual = hwbench.convert(model, format="low_rank", density=0.5, dry_run=True).set_index("layer")
    assert actual.loc["up", "dense_bytes"] == 4 * 96 * 64
    assert actual.loc["up", "bytes"] == 4 * actual.loc["up", "knobs"]["rank"] * (96 + 64)
    assert actual.loc["head", "bytes"] == actual.loc["head", "dense_bytes"]
    assert isinstance(model.up, nn.Linear)
    new_model = converted(small(), format="low_rank", density=0.5)
    stored = sum(t.nbytes for t in new_model.up.stored_tensors())
    assert stored == actual.loc["up", "bytes"]


def test_each_layer_can_have_a_format_of_its_own(tmp_path):
    plan = {"up": {"name": "low_rank", "rank": 3}, "down": {"name": "monarch", "density": 0.5}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        new_model = hwbench.convert(small(), format=plan)
    assert new_model.up.described.knobs()["rank"] == 3
    assert new_model.down.described.name() == "monarch"
    hwbench.save_converted(new_model, tmp_path)
    back = hwbench.load_converted(tmp_path, Small().eval())
    assert torch.equal(back(IDS), new_model(IDS))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "low_rnk"}, "did you mean 'low_rank'"),
        ({"format": "low_rank", "density": 0.5, "skip": ["uup"]}, "did you mean 'up'"),
        ({"format": "low_rank", "density": 0.5, "rnk": 2}, "Unknown knob"),
        ({"format": {"uup": {"name": "dense"}}}, "did you mean 'up'"),
        ({"format": {"up": {}}}, "Unknown"),
        ({"format": {"up": "low_rank"}}, "format gives 'up' 'low_rank'; give a table such as"),
        ({"format": {"up": None}}, "format gives 'up' None; give a table"),
        ({"format": ["low_rank"]}, "or a table of layers by name, not a list"),
        ({"format": None}, "or a table of layers by name, not a NoneType"),
        (
            {"format": "low_rank", "density": 0.5, "calibration": [{"pictures": 1}]},
            r"does not take a batch of calibration \(TypeError: .*pictures",
        ),
        (
            {"format": "low_rank", "density": 0.5, "calibration": [torch.ones(2, 5)]},
            r"does not take a batch of calibration \(",
        ),
        ({"format": {"up": {"name": "dense"}}, "density": 0.5}, "go with one format"),
        ({"format": "low_rank", "density": 0.5, "skip": ["*"]}, "Every linear layer is skipped"),
        ({"format": "low_rank", "density": 0.5, "calibration": []}, "holds no batches"),
        ({"format": "low_rank", "density": 0.5, "calibration": ["x"]}, "A batch of calibration"),
        ({"format": "low_rank", "density": 2.0}, "No layer can be converted"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words):
    with pytest.raises(UsageError, match=words) as caught:
        converted(small(), **arguments)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_converted_are_one_sentence():
    with torch.device("meta"):
        blank = Small()
    with pytest.raises(UsageError, match="up lies on the meta device"):
        converted(blank, format="low_rank", density=0.5)
    whole = small().requires_grad_(False)
    whole.up.weight = nn.Parameter(whole.up.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match="up holds values of int8: a quantised checkpoint"):
        converted(whole, format="low_rank", density=0.5)
    with pytest.raises(UsageError, match="holds no linear layers"):
        converted(nn.ReLU(), format="low_rank", density=0.5)
    with pytest.raises(UsageError, match="it is the whole model"):
        converted(nn.Linear(8, 8), format="low_rank", density=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_project_takes_a_layer_and_keeps_its_bias(name):
    layer = nn.Linear(64, 96)
    described = hwbench.get_format(name).from_knobs(96, 64, **options(name))
    layer_ = described.project(layer)
    assert torch.equal(layer_.bias, layer.bias)
    assert torch.equal(layer_.to_dense(), described.project(layer.weight.detach()).to_dense())
    assert described.project(nn.Linear(64, 96, bias=False)).bias is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(64, 96), "cannot stand in for a weight of 64×96. It is transposed."),
        (torch.zeros(96, 65), "cannot stand in for a weight of 96×65."),
        (torch.zeros(96), "cannot stand in for a weight of 96."),
        (torch.zeros(96, 64, device="meta"), "on the meta device"),
        (torch.zeros(96, 64, dtype=torch.int8), "a weight of int8"),
        (nn.Linear(96, 64), "It is transposed"),
        (nn.Conv1d(64, 96, 1), "not a Conv1d"),
        (Own(64, 96), "not a Own"),
        ([[1.0]], "not a list"),
    ],
)
def test_what_project_cannot_take_is_said_in_words(name, given, words):
    described = hwbench.get_format(name).from_knobs(96, 64, **options(name))
    with pytest.raises(UsageError) as caught:
        described.project(given)
    assert words in str(caught.value)


def _spoiled(**changes: Any) -> Any:
    def spoil(folder: Any) -> None:
        path = folder / "hwbench.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def _frozen(names: Any) -> Any:
    def spoil(folder: Any) -> None:
        path = folder / "hwbench.json"
        described = json.loads(path.read_text())
        described["layers"]["up"]["frozen"] = names
        path.write_text(json.dumps(described))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "hwbench.json").unlink(), "holds no hwbench.json"),
        (lambda f: (f / "hwbench.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 20), "cannot be read"),
        (_spoiled(schema=9), "not of schema 1"),
        (_spoiled(layers=3), "no table of layers"),
        (_spoiled(layers={"up": 3}), "something else than a table"),
        (_spoiled(layers={"up": {}}), "without a format"),
        (_spoiled(layers={}), "another architecture"),
        (_frozen(["rihgt"]), "'rihgt' frozen, which is no parameter"),
        (_frozen(3), "3 frozen, which is no parameter"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(spoil, words, tmp_path):
    hwbench.save_converted(converted(small(), format="low_rank", density=0.5), tmp_path)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        hwbench.load_converted(tmp_path, Small())
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path):
    hwbench.save_converted(converted(small(), format="low_rank", density=0.5), tmp_path)
    other = Small()
    other.up = nn.Linear(64, 95)
    with pytest.raises(UsageError, match="up of the model is 95×64, where the file has 96×64"):
        hwbench.load_converted(tmp_path, other)
    with pytest.raises(UnknownNameError, match="Unknown layer of Sequential"):
        hwbench.load_converted(tmp_path, nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="no layer that hwbench converted"):
        hwbench.save_converted(small(), tmp_path)
