"""The tiny policy: a character-level tokenizer and an untrained Llama with 0.36 M parameters."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<d>", "</d>", "<a>"]
_CHARACTERS = "0123456789+-*=,:;|() "


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of an arithmetic puzzle; q is `<bos>question<a>`, a draft is in <d></d>."""
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
    """An untrained Llama with three layers and 0.36 M parameters, initialized from `seed`."""
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
