"""What search and scoring return, as results for people: texts, tokens, scores, attention."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from attention_zoo.models.shapes import padded_length
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID, Tokenizer

if TYPE_CHECKING:
    from attention_zoo.models.encoder_decoder import EncoderDecoder


def found(
    results: dict[str, Any], tokenizer: Tokenizer, source_lengths: Sequence[int], make: Callable
) -> list[Any]:
    """The best hypothesis of each source, with the others as its alternatives.

    Args:
        results: What `EncoderDecoder.generate` returned.
        tokenizer: Of the outputs.
        source_lengths: For each source its positions without padding; rows beyond are padding.
        make: Function of the number of the source and, by name, text, score, tokens, alternatives and, if
            there is attention, attention (T, S) and heads.

    Returns:
        For each source what `make` returned.
    """
    count = len(source_lengths)
    ids = ops.convert_to_numpy(results["tokens"])[:count]  # (count, N, L)
    texts = tokenizer.texts_of(ids)  # (count, N)
    pieces = tokenizer.names_of(ids)  # (count, N, L)
    scores = ops.convert_to_numpy(results["scores"])
    ends = ops.convert_to_numpy(results["lengths"])[:count]
    hypotheses = np.sum(ends > 0, axis=1)  # fewer than N where no more exist
    attention = _attention_arrays(results)

    def hypothesis(row: int, rank: int) -> Any:
        end = ends[row, rank]
        others = range(1, hypotheses[row]) if rank == 0 else ()
        return make(
            row,
            text=texts[row, rank],
            score=float(scores[row, rank]),
            tokens=list(pieces[row, rank, :end]),
            alternatives=[hypothesis(row, other) for other in others],
            **_attention_of(attention, (row, rank), end, source_lengths[row]),
        )

    return [hypothesis(row, 0) for row in range(count)]


def scored(
    model: "EncoderDecoder",
    source: Any,
    targets: list[list[int]],
    tokenizer: Tokenizer,
    source_lengths: Sequence[int],
    alpha: float,
    return_attention: bool,
    make: Callable,
) -> list[Any]:
    """Given outputs with their scores.

    Args:
        model: What scores.
        source: What its encoder reads, of one or more rows; those beyond the targets are padding.
        targets: Ids of the outputs, without the end token.
        tokenizer: Of the outputs.
        source_lengths: As for `found`.
        alpha: Of the length penalty.
        return_attention: Whether to return the attention.
        make: Function of the number of the source and, by name, score, tokens, log_probabilities and, if
            asked, attention (T, S) and heads.

    Returns:
        For each source what `make` returned.
    """
    rows = len(source)
    width = padded_length(max(map(len, targets)) + 1, model.decoder.max_positions)
    labels = padded([[*ids, END_ID] for ids in targets], rows, width)
    target = padded([[START_ID, *ids] for ids in targets], rows, width)
    results = model.score_ids(source, target, labels, return_attention)
    log_probabilities = ops.convert_to_numpy(results["token_log_probabilities"])  # (B, T)
    pieces = tokenizer.names_of(labels)
    attention = _attention_arrays(results)
    made = []
    for row, ids in enumerate(targets):
        length = len(ids) + 1
        tokens = log_probabilities[row, :length].copy()
        made.append(
            make(
                row,
                score=float(tokens.sum() / ((5 + length) / 6) ** alpha),
                tokens=list(pieces[row, :length]),
                log_probabilities=tokens,
                **_attention_of(attention, (row,), length, source_lengths[row]),
            )
        )
    return made


def padded(rows: list[list[int]], count: int, width: int) -> np.ndarray:
    """Ragged rows as int32 (count, width), zero where there is nothing."""
    result = np.full((count, width), PAD_ID, "int32")
    for row, ids in zip(result, rows, strict=False):
        row[: len(ids)] = ids
    return result


def _attention_arrays(results: dict[str, Any]) -> dict[str, Any] | None:
    """What `generate` found out about attention, in NumPy; None if it was not asked."""
    if results["attention"] is None:
        return None
    parts = {name: results[name] for name in ("alignment", "heads", "encoder") if name in results}
    return keras.tree.map_structure(ops.convert_to_numpy, parts)


def _attention_of(
    arrays: dict[str, Any] | None, index: tuple[int, ...], target_length: int, source_length: int
) -> dict[str, Any]:
    """The attention of one hypothesis, at (row, rank), as arguments of `make`, without padding."""
    if arrays is None:
        return {}
    # Copies, so that one result does not keep the arrays of the whole batch.
    widths = {"cross": source_length, "self": target_length}
    heads = {
        name: np.moveaxis(x[index][:target_length, ..., : widths[name]], 0, 2).copy()  # (N, H, T, S)
        for name, x in arrays["heads"].items()
    }
    if "encoder" in arrays:
        heads["encoder"] = arrays["encoder"][index[0], :, :, :source_length, :source_length].copy()
    return {
        "attention": arrays["alignment"][index][:target_length, :source_length].copy(),
        "heads": heads,
    }
