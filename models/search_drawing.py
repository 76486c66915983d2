"""Drawing the next token at random, for `search.sample`: reproducible, and fast under XLA."""

from collections.abc import Callable
from typing import Any

from keras import ops

from attention_zoo.models.search_rules import LOWEST
from attention_zoo.ops.random import random_bits


def hypothesis_keys(seed: Any, rows: Any, samples: int) -> Any:
    """A random number for each sample of each sentence, uint32 (B, K), whatever else is in the batch."""
    sentence = ops.expand_dims(random_bits(seed, ops.cast(rows, "uint32")), 1)  # (B, 1)
    sample = random_bits(seed, ops.cast(ops.arange(samples, dtype="int32"), "uint32"))  # (K,)
    return random_bits(seed, sentence + sample)


def draw(
    worth: Any,
    position: Any,
    seed: Any,
    keys: Any,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Any:
    """Draws a token for each hypothesis, int (B, K), from what it would be worth with each, (B, K, V).

    This total differs from the token's own log-probability by what the hypothesis was worth before, which
    is the same for all tokens and so changes no probability.
    """
    vocabulary = worth.shape[-1]
    tokens = None
    if top_k is not None and top_k < vocabulary:
        worth, tokens = ops.top_k(worth, int(top_k))  # (B, K, C) for C candidates, of V at first
    logits = (worth - ops.max(worth, axis=-1, keepdims=True)) / temperature
    weights = ops.where(worth > LOWEST, ops.exp(logits), 0.0)
    if top_p is not None and top_p < 1:
        weights = ops.where(nucleus(logits, weights, top_p), weights, 0.0)
    bits = random_bits(seed, keys + random_bits(seed, ops.cast(position, "uint32")))  # (B, K)
    uniform = ops.minimum((ops.cast(bits, "float32") + 0.5) * 2.0**-32, 1 - 2.0**-24)
    drawn = draw_index(weights, uniform)
    if tokens is None:
        return drawn
    return ops.cast(ops.take_along_axis(tokens, ops.expand_dims(drawn, -1), axis=-1)[..., 0], "int32")


def nucleus(logits: Any, weights: Any, top_p: float) -> Any:
    """The fewest candidates whose weights make up `top_p` of all: bool (B, K, C).

    By bisection, which takes sums where sorting the vocabulary would be slow: first for the logit above
    which they lie, and then, of those that share this logit, for the last place that is needed.

    Args:
        logits: float (B, K, C), the largest 0.
        weights: float (B, K, C), their exponentials, and 0 for what may not be said.
        top_p: Below 1.
    """
    needed = top_p * ops.sum(weights, axis=-1, keepdims=True)  # (B, K, 1)
    candidates = logits.shape[-1]
    place = ops.arange(candidates, dtype="float32")  # (C,)

    def suffice(kept: Any) -> Any:
        return ops.sum(ops.where(kept, weights, 0.0), axis=-1, keepdims=True) >= needed  # (B, K, 1)

    def bisect(low: float, high: float, suffices: Callable[[Any], Any], rounds: int) -> tuple[Any, Any]:
        """Brings together the highest threshold known to suffice and the lowest known not to."""

        def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
            middle = (bounds[0] + bounds[1]) / 2
            enough = suffices(middle)
            return ops.where(enough, middle, bounds[0]), ops.where(enough, bounds[1], middle)

        return ops.fori_loop(0, rounds, halve, (ops.zeros_like(needed) + low, ops.zeros_like(needed) + high))

    # Below a logit of -104 float32 has no weights but 0.
    low, high = bisect(-104.0, 1.0, lambda threshold: suffice(logits >= threshold), rounds=32)
    above, tied = logits >= high, logits >= low
    last, _ = bisect(
        -candidates, 1.0, lambda threshold: suffice(above | (tied & (-place >= threshold))), rounds=24
    )
    return above | (tied & (-place >= last))


def draw_index(weights: Any, uniform: Any) -> Any:
    """Draws places, int (B, K), in proportion to weights (B, K, C) by numbers (B, K) uniform in [0, 1).

    Where the running sum of the weights passes `uniform` of their total; in two stages, a block of places
    and a place of the block, because long running sums are slow, and less exact.
    """
    batch, hypotheses, candidates = ops.shape(weights)
    width = block_width(candidates)
    blocks = -(-candidates // width)
    if candidates % width:
        weights = ops.pad(weights, ((0, 0), (0, 0), (0, blocks * width - candidates)))
    weights = ops.reshape(weights, (batch, hypotheses, blocks, width))
    sums = ops.sum(weights, axis=-1)  # (B, K, blocks)
    target = uniform * ops.sum(sums, axis=-1)  # (B, K)
    block, passed = _passing(sums, target)
    index = ops.reshape(block, (batch, hypotheses, 1, 1))
    inside = ops.take_along_axis(weights, index, axis=2)[:, :, 0]  # (B, K, width)
    place, _ = _passing(inside, target - passed)
    return block * width + place


def _passing(weights: Any, target: Any) -> tuple[Any, Any]:
    """The first place, int (B, K), where the sum of (B, K, n) passes (B, K), and the sum before it."""
    count = weights.shape[-1]
    place = ops.arange(count, dtype="int32")  # (n,)
    total = ops.cumsum(weights, axis=-1)
    passes = total > ops.expand_dims(target, -1)
    # Rounding may leave the sum below the target: then the last place of any weight.
    rank = ops.where(passes, 2 * count - place, place)
    first = ops.argmax(ops.where(weights > 0, rank, -1), axis=-1)  # (B, K)
    before = ops.take_along_axis(total - weights, ops.expand_dims(first, -1), axis=-1)[..., 0]
    return ops.cast(first, "int32"), before


def block_width(size: int) -> int:
    """Into blocks of how many an axis is cut; a width that divides it spares a padded copy."""
    return next((width for width in range(128, 15, -1) if size % width == 0), 128)
