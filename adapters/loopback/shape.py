"""The model's dimensions, and which rank holds which tensor. The command line imports this, so NumPy is not imported.

Each layer has a hashed n-gram embedding table, as the Byte Latent Transformer has at its input. The tables are as large
as `weights_mib` requires. They are equal in every layer, so that each rank holds its share of the bytes, and a token
reads one row of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from lifecycle.core.units import MIB

HIDDEN = 256
LAYERS = 4
HEADS = 4
HEAD_DIM = HIDDEN // HEADS
FEED_FORWARD = 4 * HIDDEN
VOCABULARY = 260  # 256 bytes, then BOS, EOS, PAD and one spare
PAGE_TOKENS = 16  # tokens in one page of the KV pool
FLOAT_BYTES = 4
KV_BYTES_PER_TOKEN = LAYERS * 2 * HIDDEN * FLOAT_BYTES
RANKS_ALLOWED = (1, 2, 4)  # each rank holds a whole number of layers
WEIGHTS_MIB_LEAST = 16
KV_MIB_LEAST = 4

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """How many rows each layer's n-gram table has; everything else is constant."""

    table_rows: int

    @classmethod
    def filling(cls, weights_mib: int) -> ModelShape:
        """The shape of the largest model whose weights fit into `weights_mib`."""
        # One page per layer is left for alignment, so that every rank's region stays inside its share.
        core = sum(_floats(shape) for shape in cls(0).tensors().values()) * FLOAT_BYTES + LAYERS * 4096
        return cls((weights_mib * MIB - core) // (LAYERS * HIDDEN * FLOAT_BYTES))

    def tensors(self) -> dict[str, Shape]:
        """Every tensor by name, in the order of the file."""
        return {name: shape for rank in range(LAYERS) for name, shape in self.of_rank(rank, LAYERS).items()}

    def of_rank(self, rank: int, ranks: int) -> dict[str, Shape]:
        """The tensors of one pipeline rank. The first rank has the embeddings, the last the LM head."""
        tensors: dict[str, Shape] = {"embed_tokens": (VOCABULARY, HIDDEN)} if rank == 0 else {}
        for layer in layers_of(rank, ranks):
            tensors |= self._layer(layer)
        return tensors | (_HEAD if rank == ranks - 1 else {})

    def _layer(self, layer: int) -> dict[str, Shape]:
        return {
            f"layers.{layer}.ngram_table": (self.table_rows, HIDDEN),
            f"layers.{layer}.input_norm": (HIDDEN,),
            f"layers.{layer}.qkv": (HIDDEN, 3 * HIDDEN),
            f"layers.{layer}.out": (HIDDEN, HIDDEN),
            f"layers.{layer}.post_norm": (HIDDEN,),
            f"layers.{layer}.up": (HIDDEN, FEED_FORWARD),
            f"layers.{layer}.down": (FEED_FORWARD, HIDDEN),
        }


_HEAD: dict[str, Shape] = {
    "final_norm": (HIDDEN,),
    "lm_head": (HIDDEN, VOCABULARY),
    "lm_head_bias": (VOCABULARY,),
}


@dataclass(frozen=True, slots=True)
class RankConfig:
    """The options from which a rank is built."""

    rank: int
    ranks: int
    weights_mib: int
    kv_mib: int
    memory_saver: bool
    weights_backup: bool
    in_child: bool = False  # a process of its own, also where there is only one rank
    faults_when_unmapped: bool = False  # a forward pass over released memory fails, as on a device


def layers_of(rank: int, ranks: int) -> range:
    """The consecutive layers that a rank holds."""
    share = LAYERS // ranks
    return range(rank * share, (rank + 1) * share)


def kv_capacity(kv_mib: int) -> int:
    """Tokens that a KV pool of this size holds: whole pages."""
    return kv_mib * MIB // KV_BYTES_PER_TOKEN // PAGE_TOKENS * PAGE_TOKENS


def nbytes(shape: Shape) -> int:
    """Bytes of a float32 tensor of this shape."""
    return _floats(shape) * FLOAT_BYTES


def _floats(shape: Shape) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
