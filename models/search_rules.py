"""What the hypotheses of every search may say, and what they are worth."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID

# The log-probability and the score of what cannot be: finite, so that no arithmetic yields NaN.
LOWEST = float(np.finfo("float32").min)


class SearchRules:
    """The options that all searches share, checked and made tensors.

    Args:
        name: The function that asks, for its errors.
        batch_size: As for `search.beam`, like every argument after it.
        max_length: See `search.beam`.
        limits: See `search.beam`.
        min_length: See `search.beam`.
        forced_prefix: See `search.beam`.
        length_penalty: See `search.beam`.
        coverage_penalty: See `search.beam`.
        source_mask: See `search.beam`.
        alignment: See `search.beam`.
        repetition_penalty: See `search.beam`.
        no_repeat_ngram: See `search.beam`.

    Attributes as the arguments, but `limits` is int (B,) and `forced_prefix` int (B, L) or None, and:
        penalizes: Whether log P~, by which the search goes, differs from the model's log P.
        reads: Whether the rules depend on what a hypothesis has said so far.

    Raises:
        ValueError: If an option is out of range or the coverage penalty lacks what it needs.
    """

    def __init__(
        self,
        name: str,
        *,
        batch_size: Any,
        max_length: int,
        limits: Any,
        min_length: int,
        forced_prefix: Any,
        length_penalty: float,
        coverage_penalty: float,
        source_mask: Any,
        alignment: Callable[[Any], Any] | None,
        repetition_penalty: float,
        no_repeat_ngram: int,
    ) -> None:
        # In a served graph max_length is a tensor, made from the length of the source.
        if isinstance(max_length, int) and max_length < 1:
            raise ValueError(f"{name}: expected max_length of at least 1, received {max_length}")
        if min_length < 0 or (isinstance(max_length, int) and min_length > max_length):
            raise ValueError(
                f"{name}: expected min_length from 0 to max_length={max_length}, received {min_length}"
            )
        for option, value in (("length_penalty", length_penalty), ("coverage_penalty", coverage_penalty)):
            if value < 0:
                raise ValueError(f"{name}: expected {option} of at least 0, received {value}")
        if coverage_penalty and source_mask is None:
            raise ValueError(
                f"{name}: expected source_mask with coverage_penalty={coverage_penalty}, received None; pass "
                "the boolean (batch, source) mask of the real source positions"
            )
        if not 1 <= repetition_penalty < math.inf:
            raise ValueError(
                f"{name}: expected a finite repetition_penalty of at least 1, received {repetition_penalty}; "
                "1 is no penalty"
            )
        if no_repeat_ngram < 0 or no_repeat_ngram != int(no_repeat_ngram):
            raise ValueError(
                f"{name}: expected no_repeat_ngram to be a whole number of at least 0, received "
                f"{no_repeat_ngram}; 0 allows repetition"
            )
        if limits is None:
            limits = ops.zeros((batch_size,), dtype="int32") + max_length
        limits = ops.clip(ops.cast(limits, "int32"), 0, max_length)
        if forced_prefix is not None:
            # As many columns as there are positions, so that any position can be looked up.
            prefix = ops.cast(forced_prefix, "int32")[:, : max_length + 1]
            free = ops.full((batch_size, max_length + 1 - prefix.shape[1]), PAD_ID, dtype="int32")
            forced_prefix = ops.concatenate([prefix, free], axis=1)  # (B, L)
        self.batch_size = batch_size
        self.limits = limits
        self.min_length = min_length
        self.forced_prefix = forced_prefix
        self.length_penalty = length_penalty
        self.coverage_penalty = coverage_penalty
        self.source_mask = source_mask
        self.alignment = alignment
        self.repetition_penalty = repetition_penalty
        self.no_repeat_ngram = int(no_repeat_ngram)
        self.penalizes = repetition_penalty != 1
        self.reads = self.penalizes or self.no_repeat_ngram > 0

    # --- What may be said ---

    def extend(
        self, log_probability: Any, penalized: Any, said: Any, logits: Any, position: Any
    ) -> tuple[Any, Any]:
        """Adds each token to each hypothesis.

        Args:
            log_probability: float (B, K), log P of each hypothesis.
            penalized: float (B, K), its log P~; not read unless the rules penalize.
            said: int (B, K, L), its tokens so far, then PAD; not read unless the rules read.
            logits: (B, K, V), the model's.
            position: How many tokens have been said.

        Returns:
            log P and log P~ of the hypotheses made, each (B, K, V); LOWEST for what may not be said. One
            and the same tensor unless the rules penalize.
        """
        log_probability = ops.expand_dims(log_probability, -1)  # (B, K, 1)
        vocabulary_size = logits.shape[-1]
        allowed = self._allowed_tokens(position, vocabulary_size) & (log_probability > LOWEST)
        if self.no_repeat_ngram:
            blocked = count_tokens(self._repeating_tokens(said, position), vocabulary_size) > 0
            fresh = allowed & ~blocked  # (B, K, V)
            # What is forced must be said, and something must be said.
            allowed = ops.where(ops.any(fresh, axis=-1, keepdims=True), fresh, allowed)
        following = ops.log_softmax(ops.cast(logits, "float32"))
        totals = ops.where(allowed, log_probability + following, LOWEST)
        if not self.penalizes:
            return totals, totals
        repeated = count_tokens(said, vocabulary_size) > 0  # (B, K, V)
        following = ops.where(repeated, self.repetition_penalty * following, following)
        return totals, ops.where(allowed, ops.expand_dims(penalized, -1) + following, LOWEST)

    def _allowed_tokens(self, position: Any, vocabulary_size: int) -> Any:
        """What may come next, whatever came before, bool (B, 1, V)."""
        ids = ops.arange(vocabulary_size, dtype="int32")  # (V,)
        allowed = (ids != PAD_ID) & (ids != START_ID) & ((ids != END_ID) | (position >= self.min_length))
        if self.forced_prefix is not None:
            forced = ops.take(self.forced_prefix, position, axis=1)  # (B,)
            forced = ops.expand_dims(forced, 1)  # (B, 1)
            allowed = ops.where(forced == PAD_ID, allowed, ids == forced)  # (B, V)
        at_limit = ops.expand_dims(position >= self.limits, 1)  # (B, 1)
        allowed = ops.where(at_limit, ids == END_ID, allowed)  # (B, V)
        return ops.expand_dims(allowed, 1)  # (B, 1, V)

    def _repeating_tokens(self, said: Any, position: Any) -> Any:
        """The tokens that would complete an n-gram said before: int (B, K, L), PAD where there is none.

        The token at a place would, if the n - 1 tokens before that place are also the last ones said.
        """
        place = ops.arange(ops.shape(said)[-1], dtype="int32")  # (L,)
        before = self.no_repeat_ngram - 1
        repeats = (place >= before) & (place < position)  # (L,)
        for back in range(1, before + 1):
            last = ops.take(said, ops.maximum(position - back, 0), axis=-1)  # (B, K)
            # Rolling wraps around, but never into the places that count.
            repeats = repeats & (ops.roll(said, back, axis=-1) == ops.expand_dims(last, -1))  # (B, K, L)
        return ops.where(repeats, said, PAD_ID)

    # --- What it is worth ---

    def worth(self, carry: dict[str, Any]) -> Any:
        """The number by which the search goes, (B, K): log P~ if the rules penalize, otherwise log P."""
        return carry["penalized"] if self.penalizes else carry["log_probability"]

    def no_coverage(self, hypotheses: int) -> Any:
        """The coverage before the first token: (B, K, S), and empty when nobody asks for it."""
        positions = ops.shape(self.source_mask)[1] if self.coverage_penalty else 0
        return ops.zeros((self.batch_size, hypotheses, positions))

    def cover(self, coverage: Any, attention: Any) -> Any:
        """Adds the attention of one position to the coverage, (B, K, S)."""
        if not self.coverage_penalty:
            return coverage
        if attention is None:
            raise ValueError(
                f"search: expected a model with attention for coverage_penalty={self.coverage_penalty}, "
                "received attention None; set coverage_penalty=0"
            )
        if self.alignment is not None:
            attention = self.alignment(attention)
        return coverage + ops.cast(attention, coverage.dtype)

    def score(self, worth: Any, length: Any, coverage: Any) -> Any:
        """The score of finished hypotheses, (B, K), from what they are worth; `length` counts END."""
        score = worth / _length_norm(length, self.length_penalty)
        if self.coverage_penalty:
            # Attention may be exactly zero, whose logarithm is not finite.
            covered = ops.log(ops.clip(coverage, float(np.finfo("float32").tiny), 1.0))  # (B, K, S)
            real = ops.expand_dims(ops.cast(self.source_mask, "bool"), 1)  # (B, 1, S)
            score = score + self.coverage_penalty * ops.sum(ops.where(real, covered, 0.0), axis=-1)
        return score

    def bound(self, worth: Any, groups: int = 1) -> Any:
        """No continuation of a hypothesis worth this much, (B * groups,), can score more.

        Its worth can only fall, the longest hypothesis divides it by most, and the coverage penalty adds
        nothing above 0.
        """
        limits = self.limits if groups == 1 else ops.repeat(self.limits, groups)  # (B * groups,)
        return worth / _length_norm(limits + 1, self.length_penalty)


def _length_norm(length: Any, length_penalty: float) -> Any:
    return ops.power((5.0 + ops.cast(length, "float32")) / 6.0, length_penalty)


def count_tokens(ids: Any, vocabulary_size: int) -> Any:
    """Counts how often each token occurs.

    Args:
        ids: int (B, ..., M).
        vocabulary_size: V.

    Returns:
        int32 (B, ..., V).

    Example:
        >>> ops.convert_to_numpy(count_tokens(ops.array([[1, 3, 1]]), 4))
        array([[0, 2, 0, 1]], dtype=int32)
    """
    *leading, count = ops.shape(ids)
    rows = math.prod(leading)
    # One flat table: row r counts token v at r * V + v.
    first = ops.expand_dims(ops.arange(rows, dtype="int32") * vocabulary_size, 1)  # (rows, 1)
    places = ops.reshape(first + ops.reshape(ids, (rows, count)), (-1, 1))  # (rows * M, 1)
    counts = ops.scatter(places, ops.ones_like(places[:, 0]), (rows * vocabulary_size,))  # (rows * V,)
    return ops.reshape(counts, (*leading, vocabulary_size))
