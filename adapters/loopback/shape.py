"""The model's dimensions and which rank holds which tensor. No NumPy: the command line reads this too.

Each layer owns a hashed n-gram embedding table, as Byte Latent Transformer has at its input. The tables hold the
surplus bytes that `weights_mib` asks for: a rank's slice of layers is its fair slice of the bytes, and a token
reads one row of each table.
"""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN = 256
LAYERS = 4
HEADS = 4
HEAD_DIM = HIDDEN // HEADS
FEED_FORWARD = 4 * HIDDEN
VOCABULARY = 260  # 256 bytes, then BOS, EOS, PAD and one spare
PAGE_TOKENS = 16  # tokens in one page of the KV pool
FLOAT_BYTES = 4
MIB = 1 << 20
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
        """The largest model whose weights fit into `weights_mib`."""
        # One page of slack per layer keeps every rank's aligned region inside its share.
        core = sum(_floats(shape) for shape in cls(0).tensors().values()) * FLOAT_BYTES + LAYERS * 4096
        return cls((weights_mib * MIB - core) // (LAYERS * HIDDEN * FLOAT_BYTES))

    def tensors(self) -> dict[str, Shape]:
        """Every tensor by name, in the order of the file."""
        return {name: shape for rank in range(LAYERS) for name, shape in self.of_rank(rank, LAYERS).items()}

    def of_rank(self, rank: int, ranks: int) -> dict[str, Shape]:
        """The tensors of one pipeline rank: embeddings on the first, the LM head on the last."""
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
    """What a rank is built from."""

    rank: int
    ranks: int
    weights_mib: int
    kv_mib: int
    memory_saver: bool
    weights_backup: bool


def layers_of(rank: int, ranks: int) -> range:
    """The contiguous slice of layers that a rank holds."""
    share = LAYERS // ranks
    return range(rank * share, (rank + 1) * share)


def nbytes(shape: Shape) -> int:
    """Bytes of a float32 tensor of this shape."""
    return _floats(shape) * FLOAT_BYTES


def _floats(shape: Shape) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
