"""A policy: a causal language model, its tokenizer, and how it is asked.

Committed policies (`data/policies/`) are character-level Llamas of 0.36 M parameters that know one task, so
that reinforcement learning can be watched on a laptop CPU (`pretrain` makes them). Everything else is loaded
from a local directory or a hub id. Weights are read from safetensors only, never from a pickle.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from igrpo_kit.prompts import PAPER_FORMAT, PromptFormat

POLICIES = Path(__file__).parent.parent / "data" / "policies"
"""The committed policies, one directory each."""

DRAFT_BEFORE = PromptFormat(system=None, refinement="<d>{draft}</d>{question}")
"""Ours: the answer stands as far from the question as without a draft, which helps q' -> q transfer."""
DRAFT_AFTER = PromptFormat(system=None, refinement="{question}<d>{draft}</d>")
"""The paper's order, Concat(q, draft) (Eq. 3), without its words."""

_FORMAT_FILE = "prompt_format.json"
_SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<d>", "</d>", "<a>"]
_CHARACTERS = "0123456789+-*=,:;|() "


@dataclass(frozen=True)
class Policy:
    """What is trained and what is needed to ask it."""

    name: str
    model: Any
    """a transformers causal language model"""
    tokenizer: Any
    """its fast tokenizer, with a chat template"""
    prompt_format: PromptFormat

    def save(self, folder: Path) -> None:
        """Write model (safetensors), tokenizer and prompt format, to be read by `load_policy`."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (folder / _FORMAT_FILE).write_text(json.dumps(asdict(self.prompt_format), indent=1) + "\n")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of an arithmetic puzzle; q is `<bos>question<a>`, a draft stands in <d></d>."""
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *_CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<d>", "</d>", "<a>"],
        chat_template="<bos>{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}",
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of three layers and 0.36 M parameters, its weights drawn from `seed`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=288,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.04,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def committed_policies() -> list[str]:
    """The names `load_policy` knows without a network."""
    return sorted(path.parent.name for path in POLICIES.glob("*/model.safetensors"))


def load_policy(
    name_or_path: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Policy:
    """Load a committed policy (`tiny`, ...), a local directory, or a hub id.

    Weights are float32 unless `dtype` says otherwise (transformers would take the file's own, and AdamW
    loses small updates in bfloat16), on `device`, by default the GPU where there is one. A directory without
    a prompt format of its own is asked in the paper's.

    Raises FileNotFoundError naming the offline choices where nothing is found, ValueError where a directory
    holds no safetensors or its tokenizer no chat template.
    """
    folder = POLICIES / str(name_or_path)
    if not folder.is_dir():
        folder = Path(name_or_path)
    if folder.is_dir():
        if not list(folder.glob("*.safetensors")):
            raise ValueError(f"{folder}: no *.safetensors here; pickled weights (*.bin, *.pt) are not loaded")
        source = str(folder)
    else:
        source = str(name_or_path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or torch.float32, use_safetensors=True
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{name_or_path}: neither a directory nor a hub id that can be reached; "
            f"without a network there are {', '.join(committed_policies())}"
        ) from error
    if tokenizer.chat_template is None:
        raise ValueError(f"{name_or_path}: its tokenizer has no chat template")
    return Policy(str(name_or_path), model.to(device).eval(), tokenizer, _prompt_format(folder))


def _prompt_format(folder: Path) -> PromptFormat:
    path = folder / _FORMAT_FILE
    return PromptFormat(**json.loads(path.read_text())) if path.exists() else PAPER_FORMAT
