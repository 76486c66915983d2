"""Checks of what users pass to `translate`, `caption`, `score` and `export`."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attention_zoo.models.tokenizer import Tokenizer


def strings(name: str, values: Any, caller: str) -> list[str]:
    """The values as a list, if they are a sequence of strings."""
    expected = f"{caller}: expected {name} to be a string or a sequence of strings"
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{expected}, received {type(values).__name__}")
    values = list(values)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{expected}, received a sequence with {type(value).__name__} in it")
    return values


def integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """The value as a Python int, whatever integer type it has."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, received {value!r}") from None
    if number < lowest or (highest is not None and number > highest):
        allowed = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(f"{name}: expected an integer {allowed}, received {number}")
    return number


def not_negative(name: str, value: Any) -> float:
    """The value as a Python float, whatever number type it has."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, received {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a number of at least 0, received {value}")
    return float(value)


def check_product_dtype(value: Any) -> str | None:
    """The value, if products can be rounded to it."""
    if value not in (None, "bfloat16"):
        raise ValueError(f'product_dtype: expected "bfloat16" or None, received {value!r}')
    return value


def check_tokenizers(preset: str, tokenizers: Mapping[str, Tokenizer | None]) -> None:
    """Raises ValueError unless a composition got its tokenizers."""
    missing = [name for name, tokenizer in tokenizers.items() if tokenizer is None]
    if missing:
        raise ValueError(
            f"from_preset: expected {' and '.join(missing)} with {preset!r}, a composition without weights, "
            "received none; make them with SentencePieceTokenizer.train or WhitespaceTokenizer.train, or "
            "take a preset with weights, which has its own: `attention-zoo presets` lists them"
        )


def search_settings(
    *,
    beams: int,
    n_best: int,
    length_penalty: float,
    coverage_penalty: float,
    min_length: int,
    groups: int,
    diversity_penalty: float,
    repetition_penalty: float,
    no_repeat_ngram: int,
    sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    return_attention: bool,
    product_dtype: str | None,
) -> dict[str, Any]:
    """The options of `Translator.translate` and `Captioner.caption` as arguments of `generate`."""
    beams = integer("beams", beams, 1)
    return {
        "beams": beams,
        "n_best": integer("n_best", n_best, 1, None if sample else beams),
        "groups": integer("groups", groups, 1),
        "diversity_penalty": not_negative("diversity_penalty", diversity_penalty),
        "repetition_penalty": not_negative("repetition_penalty", repetition_penalty),
        "no_repeat_ngram": integer("no_repeat_ngram", no_repeat_ngram, 0),
        "sample": bool(sample),
        "temperature": not_negative("temperature", temperature),
        "top_k": None if top_k is None else integer("top_k", top_k, 1),
        "top_p": None if top_p is None else not_negative("top_p", top_p),
        "length_penalty": not_negative("length_penalty", length_penalty),
        "coverage_penalty": not_negative("coverage_penalty", coverage_penalty),
        "min_length": integer("min_length", min_length, 0),
        "return_attention": bool(return_attention),
        "product_dtype": check_product_dtype(product_dtype),
    }


def export_settings(
    beams: int, length_penalty: float, coverage_penalty: float, product_dtype: str | None
) -> dict[str, Any]:
    """The options of `Translator.export` and `Captioner.export` as arguments of `decode`."""
    beams = integer("beams", beams, 1)
    settings = {
        "length_penalty": not_negative("length_penalty", length_penalty),
        "coverage_penalty": not_negative("coverage_penalty", coverage_penalty),
        "product_dtype": check_product_dtype(product_dtype),
    }
    return settings | ({"beams": beams, "n_best": 1} if beams > 1 else {})


def sampling_key(seed: int | None) -> np.ndarray:
    """Two words of 32 bits."""
    if seed is None:
        return np.random.randint(0, 2**31, 2).astype("int32")  # of what keras.utils.set_random_seed sets
    seed = integer("seed", seed, 0, 2**62 - 1)
    return np.array([seed % 2**31, seed // 2**31], "int32")


def sampling_rows(chosen: Sequence[int], count: int, rows: int) -> np.ndarray:
    """The numbers of a batch's rows, on which what is drawn for them depends: (rows,).

    Args:
        chosen: The numbers of the inputs in the batch.
        count: How many inputs there are in all; rows of padding have numbers beyond.
        rows: Rows of the batch, padding included.
    """
    return np.array([*chosen, *range(count, count + rows - len(chosen))], "int32")


def check_vocabulary(caller: str, part: Any, tokenizer: Tokenizer) -> None:
    """Raises ValueError if a tokenizer has other ids than the layer that reads or writes them."""
    if part.vocabulary_size != tokenizer.vocabulary_size:
        raise ValueError(
            f"{caller}: expected a tokenizer with the {part.vocabulary_size} ids of the "
            f"{type(part).__name__}, received a {type(tokenizer).__name__} with "
            f"{tokenizer.vocabulary_size}; use the one that the model was made with"
        )


def prefix_ids(
    prefix: str | Sequence[str] | None,
    count: int,
    max_length: int | None,
    tokenizer: Tokenizer,
    caller: str,
) -> list[list[int]]:
    """Ids of the prefix of each of `count` outputs, empty where there is none."""
    if prefix is None:
        return [[] for _ in range(count)]
    prefixes = strings("prefix", [prefix] * count if isinstance(prefix, str) else prefix, caller)
    if len(prefixes) != count:
        raise ValueError(
            f"{caller}: expected one prefix, or one per input ({count}), received {len(prefixes)}"
        )
    rows = tokenizer.ids_of(prefixes)
    longest = max(map(len, rows), default=0)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"{caller}: expected prefixes of at most max_length={max_length} tokens, received one "
            f"of {longest}"
        )
    return rows
