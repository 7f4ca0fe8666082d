"""Models of a few thousand random weights, and a tokenizer of 32 characters, for the tests that need one."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from igrpo_kit.core.prompts import PAPER_FORMAT
from igrpo_kit.policies.policy import Policy

PAD, BOS, EOS, ANSWER = range(4)
CHARACTERS = "0123456789+-*=,:abcdefghijkl"
VOCABULARY = 4 + len(CHARACTERS)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Character by character; `<bos> text <a>` is its chat template."""
    tokens = ["<pad>", "<bos>", "<eos>", "<a>", *CHARACTERS]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"} | special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=["<bos>", "<a>"], **names
    )
    fast.chat_template = "<bos>{% for m in messages %}{{ m['content'] }}{% endfor %}<a>"
    return fast


def small_policy(model: PreTrainedModel, **special: str) -> Policy:
    """The model with this tokenizer, for the tests that write the messages themselves."""
    return Policy("small", model, tokenizer(**special), PAPER_FORMAT)


def _build(kind: type, config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config).eval()


def llama(kv_heads: int = 2, **options: object) -> LlamaForCausalLM:
    """Two layers of two heads; `kv_heads=1` for grouped queries. Weights large enough to disagree."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **(sizes | options),
    )
    return _build(LlamaForCausalLM, config)


def qwen(**options: object) -> Qwen2ForCausalLM:
    """Two layers, grouped queries, biases on q, k and v."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **options,
    )
    model = _build(Qwen2ForCausalLM, config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # made as zeros, and a forgotten bias would go unnoticed
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def gpt2() -> GPT2LMHeadModel:
    """Learned absolute positions, no RoPE: a wrong position cannot cancel out."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return _build(GPT2LMHeadModel, config)
