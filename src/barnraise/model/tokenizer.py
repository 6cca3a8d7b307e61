"""The byte tokenizer as a tokenizer.json that transformers loads: token ids are the values of the UTF-8 bytes."""

from barnraise.config import ModelConfig

NUM_BYTES = 256


def tokenizer() -> dict[str, object]:
    """Return the content of tokenizer.json: byte-pair encoding with a token for each byte and not one merge."""
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": whole,
        "post_processor": None,
        "decoder": whole,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: value for value, letter in enumerate(_letters())},
            "merges": [],
        },
    }


def tokenizer_config(config: ModelConfig) -> dict[str, object]:
    """Return the content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }


def _letters() -> list[str]:
    """Return the letter that stands for each byte in a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 stands for itself; the others, in order, for the letters from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [value for value in range(NUM_BYTES) if value not in printable]
    return [chr(value if value in printable else NUM_BYTES + others.index(value)) for value in range(NUM_BYTES)]
