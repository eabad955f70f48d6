"""Random modules with every kind of tensor that staging must restore, and the bytes of their tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
)
#: Kinds with bytes of their own, which are lost where the kind is not staged.
OWN = ("parameter", "buffer", "unsaved buffer", "non-contiguous", "view", "sliced", "quantised", "sparse", "subclass")
#: Kinds that share their bytes with another tensor, or have none.
OTHER = ("tied", "shared storage", "empty", "meta")
ALL = (*OWN, *OTHER)


@dataclass
class Built:
    """Modules by name, the kind of each tensor by its full name, and buffers that are KV caches."""

    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    caches: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """The description of one tensor to build."""

    role: str
    depth: int
    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    seed: int


entries = st.builds(
    Entry,
    role=st.sampled_from(("target", "draft")),
    depth=st.integers(0, 2),
    kind=st.sampled_from(ALL),
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    seed=st.integers(0, 1 << 30),
)
recipes = st.lists(entries, min_size=1, max_size=14)


def build(recipe: list[Entry]) -> Built:
    """The modules of this recipe, each with a KV cache as a buffer."""
    built = Built({"target": torch.nn.Module(), "draft": torch.nn.Module()})
    for index, entry in enumerate(recipe):
        _place(built, entry, index)
    for name, root in built.modules.items():
        root.register_buffer("k_cache", torch.full((7,), 3.0))
        built.caches.append(root.k_cache)
        assert f"{name}.k_cache" not in built.kinds
    return built


def _place(built: Built, entry: Entry, index: int) -> None:
    module, path = built.modules[entry.role], entry.role
    for level in range(entry.depth):
        if not hasattr(module, f"layer{level}"):
            module.add_module(f"layer{level}", torch.nn.Module())
        module, path = getattr(module, f"layer{level}"), f"{path}.layer{level}"
    for suffix, tensor, is_parameter in _tensors(entry):
        name = f"t{index}{suffix}"
        if is_parameter:
            module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            module.register_buffer(name, tensor, persistent=entry.kind != "unsaved buffer")
        for part in _PARTS.get(entry.kind, ("",)):
            built.kinds[f"{path}.{name}{part}"] = entry.kind


_PARTS = {"sparse": ("._indices", "._values"), "subclass": (".a", ".b")}


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of random bytes; booleans stay 0 or 1."""
    size = torch.empty(shape, dtype=dtype).nbytes
    top = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, top, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).view(shape)


def _tensors(entry: Entry) -> list[tuple[str, torch.Tensor, bool]]:
    def whole() -> torch.Tensor:
        return filled(entry.shape, entry.dtype, entry.seed)

    def wide() -> torch.Tensor:
        return filled((*entry.shape, 6), entry.dtype, entry.seed)

    makers: dict[str, Callable[[], list[tuple[str, torch.Tensor, bool]]]] = {
        "parameter": lambda: [("", whole(), True)],
        "buffer": lambda: [("", whole(), False)],
        "unsaved buffer": lambda: [("", whole(), False)],
        "tied": lambda: (lambda tensor: [("a", tensor, True), ("b", tensor, True)])(whole()),
        "view": lambda: [("", wide()[..., 2:5], False)],
        "sliced": lambda: (lambda tensor: [("a", tensor[..., :2], False), ("b", tensor[..., 4:], False)])(wide()),
        "shared storage": lambda: (lambda tensor: [("a", tensor, False), ("b", tensor[..., 1:3], False)])(wide()),
        "non-contiguous": lambda: [("", wide().transpose(0, -1)[::2], True)],
        "quantised": lambda: [("", quantised(entry), False)],
        "sparse": lambda: [("", sparse(entry), False)],
        "subclass": lambda: [("", Pair(whole(), filled((3,), torch.int32, entry.seed + 1)), False)],
        "empty": lambda: [("", torch.empty((*entry.shape, 0), dtype=entry.dtype), False)],
        "meta": lambda: [("", torch.empty(entry.shape, dtype=torch.float32, device="meta"), True)],
    }
    return makers[entry.kind]()


def quantised(entry: Entry) -> torch.Tensor:
    """A quantised tensor of 8-bit integers with a scale, a kind that torch supports for old checkpoints."""
    values = torch.rand(entry.shape, generator=torch.Generator().manual_seed(entry.seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(values, 0.01, 3, torch.quint8)


def sparse(entry: Entry) -> torch.Tensor:
    """A sparse tensor with three entries."""
    values = filled((3,), torch.float32, entry.seed).nan_to_num()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_coo_tensor(torch.tensor([[0, 3, 4]]), values, (9,), check_invariants=False)


class Pair(torch.Tensor):
    """A subclass made of two tensors, as quantisation libraries make them."""

    @staticmethod
    def __new__(cls, a: torch.Tensor, b: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype)

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = a, b

    def __tensor_flatten__(self):
        return ["a", "b"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"a Pair only holds its parts: {func}")


def parts(built: Built) -> dict[str, torch.Tensor]:
    """Every strided tensor of the modules by its full name, found without the code under test."""
    found: dict[str, torch.Tensor] = {}
    for role, root in built.modules.items():
        for path, module in root.named_modules():
            for name, tensor in {**module._parameters, **module._buffers}.items():
                _take(found, ".".join(filter(None, (role, path, name))), tensor)
    return found


def _take(found: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
    if isinstance(tensor, Pair):
        found[f"{name}.a"], found[f"{name}.b"] = tensor.a, tensor.b
    elif tensor.is_sparse:
        found[f"{name}._indices"], found[f"{name}._values"] = tensor._indices(), tensor._values()
    else:
        found[name] = tensor.detach()


def content(tensor: torch.Tensor) -> bytes | None:
    """The tensor's values as bytes, in the order of its elements; None where it has none."""
    if tensor.device.type == "meta":
        return None
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def scribble(built: Built) -> None:
    """Changes every byte of every storage."""
    done = set()
    for tensor in parts(built).values():
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" or storage.data_ptr() in done or not storage.nbytes():
            continue
        done.add(storage.data_ptr())
        raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
        raw.bitwise_xor_(0xA5)
