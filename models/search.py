"""Greedy and beam search over anything that predicts the next token.

The model is a function `step(token, state) -> (logits, state, attention)`:

- token: int (B, K), the last token of each of K hypotheses per source, START at first;
- state: a nest of tensors. Leaves (B, K, ...) belong to the hypotheses and follow them when the beam
  is reordered; leaves of rank 0 are shared by all. Structure, shapes and dtypes never change;
- logits: (B, K, V), what may come next;
- attention: a nest of float tensors (B, K, ...), where each hypothesis looked, or None.

Shapes are static and the loops end early, so a whole search compiles into one XLA program.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID
from attention_zoo.ops.recurrence import scan

# The log-probability and the score of what cannot be: finite, so that no arithmetic yields NaN.
LOWEST = float(np.finfo("float32").min)

Step = Callable[[Any, Any], tuple[Any, Any, Any]]


def greedy(
    step: Step,
    state: Any,
    *,
    batch_size: int,
    max_length: int,
    limits: Any = None,
    min_length: int = 0,
    forced_prefix: Any = None,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    source_mask: Any = None,
    return_attention: bool = False,
    alignment: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """Takes the most probable token at every position until it is END.

    The penalties do not steer the search; they only enter the score that is returned.

    Args:
        step: The model, called with K = 1 (see the top of this file).
        state: The model's state before the first token.
        batch_size: B.
        max_length: As for `beam`, like every argument after it.
        limits: See `beam`.
        min_length: See `beam`.
        forced_prefix: See `beam`.
        length_penalty: See `beam`.
        coverage_penalty: See `beam`.
        source_mask: See `beam`.
        return_attention: See `beam`.
        alignment: See `beam`.

    Returns:
        What `beam` returns, with N = 1.

    Raises:
        ValueError: As `beam`.

    Example:
        >>> next_token = ops.array([[0.0, 0, 0, 0], [0, 0, 1, 9], [0, 0, 0, 0], [0, 0, 8, 0]])
        >>> def step(token, state):
        ...     return ops.take(next_token, token, axis=0), state, None
        >>> found = greedy(step, (), batch_size=1, max_length=4)
        >>> ops.convert_to_numpy(found["tokens"])
        array([[[3, 2, 0, 0, 0]]], dtype=int32)
    """
    rules = _Rules(
        "greedy",
        batch_size=batch_size,
        max_length=max_length,
        limits=limits,
        min_length=min_length,
        forced_prefix=forced_prefix,
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        source_mask=source_mask,
        alignment=alignment,
    )
    token = ops.full((batch_size, 1), START_ID, dtype="int32")
    state = keras.tree.map_structure(ops.convert_to_tensor, state)
    carry = {
        "position": ops.convert_to_tensor(0, dtype="int32"),
        "token": token,
        "state": state,
        "running": ops.ones((batch_size, 1), dtype="bool"),
        "log_probability": ops.zeros((batch_size, 1)),
        "length": ops.zeros((batch_size, 1), dtype="int32"),
        "coverage": rules.no_coverage(hypotheses=1),
        "tokens": ops.full((max_length + 1, batch_size, 1), PAD_ID, dtype="int32"),
        "attention": _attention_history(step, token, state, max_length + 1) if return_attention else (),
    }

    def extend(carry: dict[str, Any]) -> dict[str, Any]:
        position, running = carry["position"], carry["running"]
        logits, state, attention = step(carry["token"], carry["state"])
        totals = rules.extend(carry["log_probability"], logits, position)  # (B, 1, V)
        token = ops.where(running, ops.cast(ops.argmax(totals, axis=-1), "int32"), PAD_ID)
        coverage = rules.cover(carry["coverage"], attention)
        kept = attention if return_attention and attention is not None else ()
        kept = keras.tree.map_structure(lambda x: _zero_unless(running, x), kept)
        return {
            "position": position + 1,
            "token": token,
            "state": state,
            "running": running & (token != END_ID),
            "log_probability": ops.where(running, ops.max(totals, axis=-1), carry["log_probability"]),
            "length": carry["length"] + ops.cast(running, "int32"),
            "coverage": ops.where(ops.expand_dims(running, -1), coverage, carry["coverage"]),
            "tokens": _write(carry["tokens"], position, token),
            "attention": _write(carry["attention"], position, kept),
        }

    last = ops.while_loop(
        lambda carry: ops.any(carry["running"]), extend, carry, maximum_iterations=max_length + 1
    )
    return {
        "tokens": _hypotheses_first(last["tokens"]),  # (B, 1, L)
        "scores": rules.score(last["log_probability"], last["length"], last["coverage"]),
        "log_probabilities": last["log_probability"],
        "lengths": last["length"],
        "attention": _hypotheses_first(last["attention"]),  # (B, 1, L, ...)
    }


def beam(
    step: Step,
    state: Any,
    *,
    batch_size: int,
    max_length: int,
    beams: int = 4,
    n_best: int = 1,
    limits: Any = None,
    min_length: int = 0,
    forced_prefix: Any = None,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    source_mask: Any = None,
    return_attention: bool = False,
    alignment: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """Finds the hypotheses of the best score among those that grow from the K most probable beginnings.

    The score of a hypothesis Y, which ends with END and counts it in |Y|, is

        score = log P(Y) / ((5 + |Y|) / 6)^alpha + beta * sum_j log(min(sum_i p_ij, 1))

    with alpha the length penalty, beta the coverage penalty, and p_ij the attention that token i pays
    to source position j. At every position each of the K live hypotheses proposes to end, which
    competes for the n best finished ones, and the K most probable of all other continuations live on.
    The search of a sentence is over when no live hypothesis can still beat its n-th finished one. With
    one beam this is not quite greedy search: it returns the ending of the best score, not the first.

    PAD and START are never generated. END's log-probability counts, also where the limit forces it.

    Args:
        step: The model (see the top of this file).
        state: The model's state before the first token; K = `beams`.
        batch_size: B.
        max_length: Most tokens of a hypothesis, END not counted; an int, or a scalar tensor that XLA
            knows when it compiles, such as one made from a shape.
        beams: K, the number of live hypotheses.
        n_best: N, the number of hypotheses returned.
        limits: int (B,), most tokens for each sentence, END not counted; `max_length` for all if None.
        min_length: Least tokens, END not counted; a lower limit wins over it.
        forced_prefix: int (B, P), the first tokens, each PAD where the search is free; their
            log-probabilities count. A sentence's limit wins over it.
        length_penalty: alpha, 0 or more.
        coverage_penalty: beta, 0 or more; needs `source_mask` and a model with attention.
        source_mask: bool (B, S), True at the real source positions, over which j runs.
        return_attention: Whether the attention of the returned hypotheses is returned.
        alignment: Function from the model's attention nest to p, (B, K, S); needed for the coverage
            penalty when the attention is not that tensor itself.

    Returns:
        A dict, the best hypothesis first, with L = max_length + 1:

        - "tokens": int32 (B, N, L), END included, then PAD;
        - "scores": float32 (B, N);
        - "log_probabilities": float32 (B, N), log P;
        - "lengths": int32 (B, N), |Y|;
        - "attention": the model's attention nest, (B, N, L, ...), zero after END; None if not asked
          for or if the model has none.

        When fewer than N hypotheses exist, the rest have only PAD, length 0, and the lowest finite
        float32 as score and log-probability.

    Raises:
        ValueError: If an option is out of range or the coverage penalty lacks what it needs.

    Example:
        >>> next_token = ops.array([[0.0, 0, 0, 0], [0, 0, 1, 9], [0, 0, 0, 0], [0, 0, 8, 0]])
        >>> def step(token, state):
        ...     return ops.take(next_token, token, axis=0), state, None
        >>> found = beam(step, (), batch_size=1, max_length=4, beams=2, n_best=2)
        >>> ops.convert_to_numpy(found["tokens"])
        array([[[3, 2, 0, 0, 0],
                [2, 0, 0, 0, 0]]], dtype=int32)

    Reference:
        Wu et al. 2016, "Google's Neural Machine Translation System", section 7.
    """
    for name, value in (("beams", beams), ("n_best", n_best)):
        if value < 1:
            raise ValueError(f"beam: expected {name} of at least 1, received {value}")
    rules = _Rules(
        "beam",
        batch_size=batch_size,
        max_length=max_length,
        limits=limits,
        min_length=min_length,
        forced_prefix=forced_prefix,
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        source_mask=source_mask,
        alignment=alignment,
    )
    token = ops.full((batch_size, beams), START_ID, dtype="int32")
    state = keras.tree.map_structure(ops.convert_to_tensor, state)
    # All hypotheses are the same at first: only one of them lives.
    first = ops.where(ops.arange(beams) == 0, 0.0, LOWEST)  # (K,)
    carry = {
        "position": ops.convert_to_tensor(0, dtype="int32"),
        "token": token,
        "state": state,
        "log_probability": ops.zeros((batch_size, beams)) + first,
        "coverage": rules.no_coverage(beams),
        # A finished hypothesis is where it ended: `end`, the position of its END, and `beam`, the live
        # hypothesis that it ended. Its tokens are read off the history when all is over.
        "finished": {
            "score": ops.full((batch_size, n_best), LOWEST),
            "log_probability": ops.full((batch_size, n_best), LOWEST),
            "end": ops.full((batch_size, n_best), -1, dtype="int32"),
            "beam": ops.zeros((batch_size, n_best), dtype="int32"),
        },
        # At each position the K tokens that live on, which beams they continue, and the attention of
        # those beams.
        "history": {
            "token": ops.zeros((max_length + 1, batch_size, beams), dtype="int32"),
            "parent": ops.zeros((max_length + 1, batch_size, beams), dtype="int32"),
            "attention": _attention_history(step, token, state, max_length + 1) if return_attention else (),
        },
    }

    def unsettled(carry: dict[str, Any]) -> Any:
        most_probable = ops.max(carry["log_probability"], axis=1)  # (B,)
        worst_finished = carry["finished"]["score"][:, -1]  # (B,)
        return ops.any((most_probable > LOWEST) & (rules.bound(most_probable) > worst_finished))

    def extend(carry: dict[str, Any]) -> dict[str, Any]:
        position = carry["position"]
        logits, state, attention = step(carry["token"], carry["state"])
        coverage = rules.cover(carry["coverage"], attention)
        totals = rules.extend(carry["log_probability"], logits, position)  # (B, K, V)
        ended = totals[..., END_ID]  # (B, K)
        scores = ops.where(ended > LOWEST, rules.score(ended, position + 1, coverage), LOWEST)
        finished = _best_finished(carry["finished"], scores, ended, position)
        log_probability, parent, token = _best_continuations(totals)  # each (B, K)
        kept = attention if return_attention and attention is not None else ()
        written = {"token": token, "parent": parent, "attention": kept}
        return {
            "position": position + 1,
            "token": token,
            "state": _take_beams(state, parent),
            "log_probability": log_probability,
            "coverage": _take_beams(coverage, parent),
            "finished": finished,
            "history": _write(carry["history"], position, written),
        }

    last = ops.while_loop(unsettled, extend, carry, maximum_iterations=max_length + 1)
    finished = last["finished"]
    tokens, path = _backtrack(last["history"], finished)  # each (L, B, N)
    attention = _take_path(last["history"]["attention"], path, finished["end"])  # (L, B, N, ...)
    return {
        "tokens": _hypotheses_first(tokens),  # (B, N, L)
        "scores": finished["score"],
        "log_probabilities": finished["log_probability"],
        "lengths": finished["end"] + 1,
        "attention": _hypotheses_first(attention),  # (B, N, L, ...)
    }


# === What a hypothesis may say and what it is worth ===


class _Rules:
    """The options that greedy and beam search share, checked and made tensors.

    Attributes as the arguments of `beam`, but `limits` is int (B,) and `forced_prefix` int (B, L) or None.
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

    def extend(self, log_probability: Any, logits: Any, position: Any) -> Any:
        """The log P of each hypothesis with each token added, (B, K, V); LOWEST for what may not be."""
        log_probability = ops.expand_dims(log_probability, -1)  # (B, K, 1)
        allowed = self._allowed_tokens(position, logits.shape[-1]) & (log_probability > LOWEST)
        totals = log_probability + ops.log_softmax(ops.cast(logits, "float32"))
        return ops.where(allowed, totals, LOWEST)

    def _allowed_tokens(self, position: Any, vocabulary_size: int) -> Any:
        """What may come next, bool (B, 1, V)."""
        ids = ops.arange(vocabulary_size, dtype="int32")  # (V,)
        allowed = (ids != PAD_ID) & (ids != START_ID) & ((ids != END_ID) | (position >= self.min_length))
        if self.forced_prefix is not None:
            forced = ops.take(self.forced_prefix, position, axis=1)  # (B,)
            forced = ops.expand_dims(forced, 1)  # (B, 1)
            allowed = ops.where(forced == PAD_ID, allowed, ids == forced)  # (B, V)
        at_limit = ops.expand_dims(position >= self.limits, 1)  # (B, 1)
        allowed = ops.where(at_limit, ids == END_ID, allowed)  # (B, V)
        return ops.expand_dims(allowed, 1)  # (B, 1, V)

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

    def score(self, log_probability: Any, length: Any, coverage: Any) -> Any:
        """The score of finished hypotheses, (B, K); `length` counts END."""
        score = log_probability / self._length_norm(length)
        if self.coverage_penalty:
            # Attention may be exactly zero, whose logarithm is not finite.
            covered = ops.log(ops.clip(coverage, float(np.finfo("float32").tiny), 1.0))  # (B, K, S)
            real = ops.expand_dims(ops.cast(self.source_mask, "bool"), 1)  # (B, 1, S)
            score = score + self.coverage_penalty * ops.sum(ops.where(real, covered, 0.0), axis=-1)
        return score

    def bound(self, log_probability: Any) -> Any:
        """No continuation of a hypothesis of this log P, (B,), can score more.

        Its log P can only fall, the longest hypothesis divides it by most, and the coverage penalty adds
        nothing above 0.
        """
        return log_probability / self._length_norm(self.limits + 1)

    def _length_norm(self, length: Any) -> Any:
        return ops.power((5.0 + ops.cast(length, "float32")) / 6.0, self.length_penalty)


# === One step of the beam ===


def _best_continuations(totals: Any) -> tuple[Any, Any, Any]:
    """The K best of all tokens but END after all beams: log P, parent and token, each (B, K).

    Top-k in two stages, because sorting is slow and taking a maximum is fast: the K best lie in the K
    blocks whose maxima are best, and only these are sorted.
    """
    batch, beams, vocabulary = ops.shape(totals)
    totals = ops.where(ops.arange(vocabulary, dtype="int32") == END_ID, LOWEST, totals)
    # A block width that divides the vocabulary spares a padded copy.
    width = next((width for width in range(128, 15, -1) if vocabulary % width == 0), 128)
    blocks = -(-vocabulary // width)
    if vocabulary % width:
        totals = ops.pad(totals, ((0, 0), (0, 0), (0, blocks * width - vocabulary)), constant_values=LOWEST)
    totals = ops.reshape(totals, (batch, beams * blocks, width))  # (B, K * blocks, width)
    _, best_blocks = ops.top_k(ops.max(totals, axis=-1), beams)  # (B, K)
    candidates = ops.reshape(_take_beams(totals, best_blocks), (batch, beams * width))  # (B, K * width)
    log_probability, winners = ops.top_k(candidates, beams)  # (B, K)
    block = ops.take_along_axis(best_blocks, winners // width, axis=1)  # (B, K)
    token = block % blocks * width + winners % width
    # What fills the places of missing hypotheses must still be a token that the model knows.
    token = ops.where(log_probability > LOWEST, token, PAD_ID)
    return log_probability, ops.cast(block // blocks, "int32"), ops.cast(token, "int32")


def _best_finished(finished: dict[str, Any], scores: Any, log_probability: Any, position: Any) -> Any:
    """The n best of the finished hypotheses (B, N) and those that end here (B, K), in order."""
    beams = scores.shape[1]
    here = {
        "score": scores,
        "log_probability": log_probability,
        "end": ops.zeros_like(scores, dtype="int32") + ops.where(scores > LOWEST, position, -1),
        "beam": ops.zeros_like(scores, dtype="int32") + ops.arange(beams, dtype="int32"),
    }
    together = {name: ops.concatenate([finished[name], here[name]], axis=1) for name in here}
    _, best = ops.top_k(together["score"], finished["score"].shape[1])  # (B, N)
    return {name: ops.take_along_axis(x, best, axis=1) for name, x in together.items()}


def _take_beams(nest: Any, index: Any) -> Any:
    """Reorders every leaf (B, K, ...) by `index`, int (B, N), to (B, N, ...); leaves scalars alone."""
    batch, wanted = ops.shape(index)

    def take(x: Any) -> Any:
        if len(x.shape) < 2:
            return x
        _, beams, *rest = ops.shape(x)
        # Whole rows of a flat tensor: take_along_axis would make an index for every single number.
        rows = ops.expand_dims(ops.arange(batch, dtype="int32") * beams, 1) + index  # (B, N)
        flat = ops.reshape(x, (batch * beams, *rest))  # (B * K, ...)
        return ops.reshape(ops.take(flat, ops.reshape(rows, (-1,)), axis=0), (batch, wanted, *rest))

    return keras.tree.map_structure(take, nest)


# === History ===


def _attention_history(step: Step, token: Any, state: Any, positions: int) -> Any:
    """Zeros (L, B, K, ...) for the attention of every position; () for a model without attention."""
    # Called for the shapes only: nothing depends on the values, so a compiled search drops it.
    _, _, attention = step(token, state)
    if attention is None:
        return ()
    return keras.tree.map_structure(lambda x: ops.zeros((positions, *ops.shape(x)), dtype=x.dtype), attention)


def _write(history: Any, position: Any, now: Any) -> Any:
    """Puts a nest of (B, K, ...) at one position of a nest of (L, B, K, ...)."""
    return keras.tree.map_structure(
        lambda past, x: ops.slice_update(
            past, (position, *[0] * len(x.shape)), ops.expand_dims(ops.cast(x, past.dtype), 0)
        ),
        history,
        now,
    )


def _backtrack(history: dict[str, Any], finished: dict[str, Any]) -> tuple[Any, Any]:
    """Follows the parents from the end to the start.

    Returns:
        The tokens and, for each position, the beam that was asked for them; each int (L, B, N).
    """
    end = finished["end"]

    def back(beam: Any, inputs: tuple[Any, Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        position, token, parent = inputs  # (), (B, K), (B, K)
        token = ops.where(position == end, END_ID, ops.take_along_axis(token, beam, axis=1))
        token = ops.where(position > end, PAD_ID, token)
        beam = ops.where(position < end, ops.take_along_axis(parent, beam, axis=1), beam)
        return beam, (token, beam)

    positions = ops.arange(ops.shape(history["token"])[0], dtype="int32")
    backwards = [ops.flip(x, axis=0) for x in (positions, history["token"], history["parent"])]
    _, (tokens, path) = scan(back, tuple(backwards), finished["beam"])
    return ops.flip(tokens, axis=0), ops.flip(path, axis=0)


def _take_path(history: Any, path: Any, end: Any) -> Any:
    """The attention (L, B, N, ...) along a path, zero after END, of a nest of (L, B, K, ...)."""
    positions, batch, wanted = ops.shape(path)
    flat_path = ops.reshape(path, (positions * batch, wanted))  # (L * B, N)
    position = ops.reshape(ops.arange(positions, dtype="int32"), (positions, 1, 1))  # (L, 1, 1)

    def take(x: Any) -> Any:
        _, _, beams, *rest = ops.shape(x)
        x = _take_beams(ops.reshape(x, (positions * batch, beams, *rest)), flat_path)  # (L * B, N, ...)
        return _zero_unless(position <= end, ops.reshape(x, (positions, batch, wanted, *rest)))

    return keras.tree.map_structure(take, history)


def _zero_unless(condition: Any, x: Any) -> Any:
    """`x`, (*condition.shape, ...), with zeros where the condition does not hold."""
    missing = len(x.shape) - len(condition.shape)
    condition = ops.reshape(condition, (*ops.shape(condition), *[1] * missing))
    return ops.where(condition, x, ops.zeros_like(x))


def _hypotheses_first(nest: Any) -> Any:
    """A nest of (L, B, N, ...) to (B, N, L, ...), and () to None."""
    if isinstance(nest, tuple) and not nest:
        return None
    return keras.tree.map_structure(
        lambda x: ops.transpose(x, (1, 2, 0, *range(3, len(x.shape)))),  # (B, N, L, ...)
        nest,
    )
