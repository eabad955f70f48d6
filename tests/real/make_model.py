"""After `checkpoint(seed)`, `.cache/real/models/llama-SEED/` holds a random Llama that the real SGLang serves on a CPU.

`tiny_checkpoint` does the same with a Qwen2 of a few hundred KB for the real vLLM, which frees no memory on a CPU. The
environments of `build_env.py` and `vllm_env.py` do the work.

The weights of the Llama are large enough to be measured (287 MB of float32). All depend on the seed alone. Two seeds
therefore give two checkpoints of one architecture: one for a weight update to load, whose answers show afterwards
whether it was loaded. The tokenizer is the same for every seed.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import vllm_env
from build_env import CACHE, PYTHON, one_builder

MODELS = CACHE / "models"
VOCABULARY = 512
SPECIAL = ("<|end|>", "<|begin|>")
CHAT_TEMPLATE = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}assistant: "

LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
    "bos_token_id": 1,
    "tie_word_embeddings": False,
    # With the usual 0.02, every greedy answer repeats one token.
    "initializer_range": 0.08,
}

QWEN2 = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.4,
}

# Whose interpreter writes a kind of model, and what its configuration is.
KINDS = {"llama": (PYTHON, LLAMA), "qwen2": (vllm_env.PYTHON, QWEN2)}


def checkpoint(seed: int) -> Path:
    """The folder of this seed's Llama. It is written where it is missing, incomplete or outdated."""
    return _made("llama", seed)


def tiny_checkpoint(seed: int) -> Path:
    """The folder of this seed's Qwen2, as `checkpoint`."""
    return _made("qwen2", seed)


def _made(kind: str, seed: int) -> Path:
    folder = MODELS / f"{kind}-{seed}"
    with one_builder():
        if not _is_written(folder):
            subprocess.run([str(KINDS[kind][0]), __file__, kind, str(seed)], check=True)
    return folder


def _is_written(folder: Path) -> bool:
    stamp = folder / "recipe.sha256"
    return stamp.is_file() and stamp.read_text() == _recipe()


def _recipe() -> str:
    """The hash of everything that decides what a seed's checkpoint is."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _write(kind: str, seed: int) -> None:
    folder = MODELS / f"{kind}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    write_model(kind, folder, KINDS[kind][1], seed)
    (folder / "recipe.sha256").write_text(_recipe())


def write_model(kind: str, folder: Path, options: dict[str, Any], seed: int, dtype: str = "float32") -> None:
    """The random weights of this kind of model are in the folder, made on the default device of torch."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **options)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.generation_config.do_sample = False
    # The end token is never the most likely one, so that a greedy answer has the requested length.
    with torch.no_grad():
        model.lm_head.weight[config.eos_token_id] = 0
    model.save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of exactly `VOCABULARY` tokens: any text goes in, and every token comes out as text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_sentences(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    end, begin = SPECIAL
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=begin)
    whole.chat_template = CHAT_TEMPLATE
    whole.save_pretrained(folder)


def _sentences() -> list[str]:
    """The same made-up words on every machine, enough of them for all the merges."""
    dice = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 3))) for _ in range(400)]
    return [" ".join(dice.choices(words, k=12)) for _ in range(2000)]


if __name__ == "__main__":
    _write(sys.argv[1], int(sys.argv[2]))
