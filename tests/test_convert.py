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

import hwbench
from hwbench import plugins
from hwbench.errors import UnknownNameError, UsageError
from hwbench.formats._base import FORWARD, STEP, Format, Linear
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
