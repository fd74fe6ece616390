"""The 25 published layers that ``published.py`` times beside ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import published_spellings as spelled
from published_code import Source, Spelling

MBS = Source(
    "Zhurgut/MemoryBetterSpent",
    "413df48",
    "Memory Better Spent, master's thesis, ETH Zürich, doi:10.3929/ethz-c-000784403",
    roots=("src/Python",),
)
FLY = Source(
    "HazyResearch/fly",
    "6b73449",
    "Dao et al., Monarch: Expressive Structured Matrices, 2022, arXiv:2204.00595",
    missing=("einops", "src.utils.utils"),
    roots=(".",),
)
BLAST = Source(
    "changwoolee/BLAST",
    "00b29cf",
    "Lee et al., BLAST: Block-Level Adaptive Structured Matrices, 2024, arXiv:2410.21262",
    missing=("transformers.models.llama.modeling_llama",),
)
CBS = Source(
    "shikaiqiu/compute-better-spent",
    "4523764",
    "Qiu et al., Compute Better Spent: Replacing Dense Layers, 2024, arXiv:2406.06248",
)
COND = Source(
    "calgaryml/condensed-sparsity",
    "3052bb8",
    "Lasby et al., Dynamic sparse training with structured sparsity, 2024, arXiv:2305.02299",
    missing=("torch_sparse.ops",),
)
KSMM = Source(
    "PascalCarrivain/ksmm",
    "d02b9cc",
    "Gonon et al., Fast inference with Kronecker-sparse matrices, 2024, arXiv:2405.15013",
    missing=("einops",),
    roots=("src",),
)
MEBLR = Source(
    "pabillam/mem-efficient-blr",
    "d3e02c1",
    "Abillama et al., Memory-Efficient Acceleration of Block Low-Rank Foundation Models, 2025, "
    "arXiv:2512.20861",
)
SFFN = Source(
    "CLAIRE-Labo/StructuredFFN",
    "2442a14",
    "Wei et al., Building on Efficient Foundations, 2024, arXiv:2406.16450",
    missing=("einops",),
)
PIFA = Source(
    "biomedical-cybernetics/pivoting-factorization",
    "595a80f",
    "Zhao et al., Pivoting Factorization, ICML 2025, arXiv:2501.19090",
)
SLTRAIN = Source(
    "andyjm3/SLTrain",
    "2335d62",
    "Han et al., SLTrain: a sparse plus low-rank approach for pretraining, 2024, arXiv:2406.02214",
)


class Published(NamedTuple):
    """One published layer, and the format of ours that multiplies by the same matrix."""

    name: str
    format: str
    knobs: dict[str, Any]
    source: Source
    code: str
    """FILE:SYMBOL in the repository."""

    words: str
    """What its forward pass does."""

    spelling: Spelling


HALF: dict[str, Any] = {"density": 0.5}
TENTH: dict[str, Any] = {"density": 0.1}
STRIDED: dict[str, Any] = {**HALF, "order": "strided"}
_MBS = "src/Python/layers.py"
_COND = "src/condensed_sparsity/condensed_linear.py"
_TO_TOKENS = "two batched products into memory whose outer axis is tokens"
_FORMED = "W formed in every call, and one dense product with the bias"


def published(side: int) -> list[Published]:
    """The layers of (side, side): a square number that 16 divides."""
    return [*_low_rank(), *_two_stages(side), *_shared_bases(), *_entries(), *_others()]


def _low_rank() -> list[Published]:
    return [
        Published(
            "low_rank/MBS",
            *("low_rank", HALF, MBS, f"{_MBS}:LowRank"),
            "two matrix products, and a bias added to what they give",
            spelled.TWO_PRODUCTS_AND_BIAS,
        ),
        Published(
            "low_rank/SFFN",
            *("low_rank", HALF, SFFN, "src/modules/op/low_rank.py:low_rank_custom"),
            "two matrix products",
            spelled.TWO_PRODUCTS,
        ),
        Published(
            "low_rank_light first/MBS",
            *("low_rank_light", {**HALF, "columns": "first"}, MBS, f"{_MBS}:LowRankLight"),
            "a product to which the first inputs are added, and one with the bias",
            spelled.FIRST_COLUMNS,
        ),
        Published(
            "low_rank_light/PIFA",
            *("low_rank_light", HALF, PIFA, "utils/linear_pivot.py:PivotLinear"),
            "a product for the pivot rows, one of these for the others, each copied to its places",
            spelled.PIVOT_ROWS,
        ),
    ]


def _two_stages(side: int) -> list[Published]:
    fly = (FLY, "src/models/layers/monarch_linear.py:MonarchLinear")
    rank_one = {"blocks": 4, "out_blocks": side // 4, "rank": 1, "order": "strided"}
    return [
        Published(
            "monarch strided/FLY",
            *("monarch", STRIDED, *fly),
            f"{_TO_TOKENS}, a copy between and one after them",
            spelled.BUTTERFLY_AS_MODULE,
        ),
        Published(
            "monarch blocked/FLY",
            *("monarch", HALF, *fly),
            "as before, in the strided order, which is its only one; ours is the blocked one",
            spelled.BUTTERFLY_REORDERED,
        ),
        Published(
            "monarch strided/SFFN",
            *("monarch", STRIDED, SFFN, "src/modules/op/block_shuffle.py:block_shuffle_custom"),
            "as that of FLY, as a function",
            spelled.BUTTERFLY,
        ),
        Published(
            "monarch strided/MEBLR",
            *("monarch", STRIDED, MEBLR, "torch_funcs/monarch_funcs.py:torch_monarch_baseline"),
            "two batched products into new memory, two copies between and one after them",
            spelled.BUTTERFLY_IN_COPIES,
        ),
        Published(
            "monarch strided/KSMM",
            *("monarch", STRIDED, KSMM),
            "src/ksmm_py/layer/kronecker_sparse/interface.py:KSLinear",
            f"algo=bmm: {_TO_TOKENS}, a copy between and one after them",
            spelled.BUTTERFLY_OF_PATTERNS,
        ),
        Published(
            "monarch rank 1/MBS",
            *("monarch", rank_one, MBS, f"{_MBS}:Monarch"),
            "a batched product of 4 blocks and one of a quarter of the side, a permutation after "
            "each, and a bias",
            spelled.TWO_BLOCK_DIAGONALS,
        ),
        Published(
            "btt/CBS",
            *("btt", HALF, CBS, "mm/btt_mvm.py:btt_mvm"),
            f"{_TO_TOKENS}, one copy between them",
            spelled.CORES,
        ),
        Published(
            "btt strided/MBS",
            *("btt", STRIDED, MBS, f"{_MBS}:BTT2"),
            _FORMED,
            spelled.TRAIN_FORMED,
        ),
    ]


def _shared_bases() -> list[Published]:
    layers = []
    for blocks in (4, 16):
        knobs = {**HALF, "blocks": blocks}
        layers += [
            Published(
                f"blast {blocks}/BLAST",
                *("blast", knobs, BLAST, "models/modeling_blast.py:BlastLinear"),
                "a batched product, each product with a coupling formed before their sum, and a "
                "batched product",
                spelled.COUPLED_BY_SUMS,
            ),
            Published(
                f"blast {blocks}/MEBLR",
                *("blast", knobs, MEBLR, "torch_funcs/blast_funcs.py:torch_blast_bmm"),
                "three batched products, a copy before and after the one of the couplings",
                spelled.COUPLED_BY_BMM,
            ),
        ]
    return layers


def _entries() -> list[Published]:
    sparse = "F.linear with a CSR tensor and the bias"
    return [
        Published(
            "condensed 0.1/COND",
            *("condensed", TENTH, COND, f"{_COND}:CondensedLinearFineGrained"),
            "the inputs of every output gathered, multiplied and summed, and a bias",
            spelled.GATHERED,
        ),
        Published(
            "condensed 0.1/COND sparse",
            *("condensed", TENTH, COND, f"{_COND}:CondensedLinearFineGrainedSparseOp"),
            sparse,
            spelled.COMPRESSED_ROWS,
        ),
        Published(
            "csr 0.1/COND",
            *("csr", TENTH, COND, f"{_COND}:CSRLinear"),
            sparse,
            spelled.COMPRESSED_ROWS,
        ),
        Published(
            "masked_dense/MBS",
            *("masked_dense", HALF, MBS, f"{_MBS}:MaskedSparse"),
            "the weight times its mask, one product, and a bias",
            spelled.MASKED,
        ),
        Published(
            "low_rank_sparse/SLTrain",
            *("low_rank_sparse", {**HALF, "sparse": "entries"}, SLTRAIN),
            "splora/splora_linear.py:SpLoRaLinear",
            "W formed in every call by a product and additions at the places of the entries, and "
            "one dense product; backward W formed again, and the gradient of all of W",
            spelled.FORMED_SUM,
        ),
    ]


def _others() -> list[Published]:
    return [
        Published(
            "block_dense/SFFN",
            *("block_dense", HALF, SFFN, "src/modules/op/block_dense.py:block_dense_custom"),
            "a batched product into memory whose outer axis is tokens, and a dense product",
            spelled.BLOCKS_THEN_DENSE,
        ),
        Published(
            "block_diagonal 4/MBS",
            *("block_diagonal", {"blocks": 4}, MBS, f"{_MBS}:BlockDiagonal"),
            "one batched product, a copy, and a bias",
            spelled.DIAGONAL_BLOCKS,
        ),
        Published(
            "kronecker rank 1/MBS",
            *("kronecker", {"rank": 1}, MBS, f"{_MBS}:Kronecker"),
            _FORMED,
            spelled.KRON_FORMED,
        ),
        Published(
            "kronecker 0.5/MBS",
            *("kronecker", HALF, MBS, f"{_MBS}:TT"),
            f"two cores: {_FORMED}",
            spelled.CORES_FORMED,
        ),
    ]
