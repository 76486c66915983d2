"""Greedy search, sampling and beam search over anything that predicts the next token.

The model is a function `step(token, state) -> (logits, state, attention)`:

- token: int (B, K), the last token of each of K hypotheses per source, START at first;
- state: a nest of tensors. Leaves (B, K, ...) belong to the hypotheses and follow them when the beam
  is reordered; leaves of rank 0, and all that a dict has under "shared", are shared by all and stay as the
  step returned them. Structure, shapes and dtypes never change;
- logits: (B, K, V), what may come next;
- attention: a nest of float tensors (B, K, ...), where each hypothesis looked, or None.

Shapes are static and the loops end early, so a whole search compiles into one XLA program. What every
search may say and what its hypotheses are worth is in search_rules.py.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from attention_zoo.models.search_drawing import block_width, draw, hypothesis_keys
from attention_zoo.models.search_rules import LOWEST, SearchRules, count_tokens
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID
from attention_zoo.ops.recurrence import scan

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
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
) -> dict[str, Any]:
    """Takes the most probable token at every position until it is END.

    The length and coverage penalties do not steer the search; they only enter the score that is
    returned. The repetition penalty does both.

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
        repetition_penalty: See `beam`.
        no_repeat_ngram: See `beam`.

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
    rules = SearchRules(
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
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
    )

    def most_probable(worth: Any, position: Any) -> tuple[Any, Any]:
        best = ops.max(worth, axis=-1, keepdims=True)  # (B, 1, 1)
        # Not by argmax, which takes three times as long under XLA on a CPU.
        ids = ops.arange(worth.shape[-1], dtype="int32")  # (V,)
        return ops.min(ops.where(worth == best, ids, worth.shape[-1] - 1), axis=-1), best[..., 0]

    return _follow(
        most_probable,
        step,
        state,
        rules,
        hypotheses=1,
        max_length=max_length,
        return_attention=return_attention,
    )


def sample(
    step: Step,
    state: Any,
    *,
    batch_size: int,
    max_length: int,
    seed: Any,
    rows: Any = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    limits: Any = None,
    min_length: int = 0,
    forced_prefix: Any = None,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    source_mask: Any = None,
    return_attention: bool = False,
    alignment: Callable[[Any], Any] | None = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
) -> dict[str, Any]:
    """Draws hypotheses: every next token is drawn from the model's distribution, until it is END.

    What may not be said is struck out first. Of the rest, token v is drawn with a probability
    proportional to p(v)^(1 / temperature), if it is among the `top_k` most probable, and then among the
    fewest of these, the most probable first, whose probabilities together reach `top_p`. Of equally
    probable tokens the one of the lower id goes first.

    A draw is a pure function of the seed, the sentence's row, the number of the sample, the position and
    the distribution: it does not depend on the other sentences, on padding, or on how many samples are
    drawn. The scores and log-probabilities are the model's, as if it had been asked for what was drawn:
    no temperature and no truncation enters them, so that they can be compared with those of `beam`.

    Args:
        step: The model (see the top of this file).
        state: The model's state before the first token; K = `samples`.
        batch_size: B.
        max_length: See `beam`.
        seed: int (2,), two words; equal seeds give equal samples, compiled or not.
        rows: int (B,), the number of each sentence, for sentences that are spread over several batches;
            0 ... B-1 if None. Sentences of equal rows are drawn with the same random numbers.
        samples: K, how many hypotheses are drawn for each source, each independent of the others; so
            the same one may come twice.
        temperature: Above 0. Below 1 favours the probable, above 1 the improbable.
        top_k: The most tokens to choose among; all if None.
        top_p: The probability to choose within, above 0 and at most 1; all if None.
        limits: As for `beam`, like every argument after it.
        min_length: See `beam`.
        forced_prefix: See `beam`.
        length_penalty: See `beam`. Enters the scores, not the draws, like the coverage penalty.
        coverage_penalty: See `beam`.
        source_mask: See `beam`.
        return_attention: See `beam`.
        alignment: See `beam`.
        repetition_penalty: See `beam`.
        no_repeat_ngram: See `beam`.

    Returns:
        What `beam` returns, with N = `samples`, the best score first.

    Raises:
        ValueError: As `beam`.

    Example:
        >>> next_token = ops.array([[0.0, 0, 0, 0], [0, 0, 1, 9], [0, 0, 0, 0], [0, 0, 8, 0]])
        >>> def step(token, state):
        ...     return ops.take(next_token, token, axis=0), state, None
        >>> found = sample(step, (), batch_size=1, max_length=4, seed=(1, 2), samples=2, top_k=1)
        >>> ops.convert_to_numpy(found["tokens"])
        array([[[3, 2, 0, 0, 0],
                [3, 2, 0, 0, 0]]], dtype=int32)

    Reference:
        Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.1 (top_k);
        Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3 (top_p).
    """
    if samples < 1:
        raise ValueError(f"sample: expected samples of at least 1, received {samples}")
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"sample: expected a finite temperature above 0, received {temperature}; greedy search is the "
            "limit of low temperatures"
        )
    if top_k is not None and (top_k < 1 or top_k != int(top_k)):
        raise ValueError(
            f"sample: expected top_k to be a whole number of at least 1, received {top_k}; None keeps all"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"sample: expected top_p above 0 and at most 1, received {top_p}; None keeps all")
    seed = ops.convert_to_tensor(seed)
    if tuple(seed.shape) != (2,):
        raise ValueError(f"sample: expected a seed of two integers, received shape {tuple(seed.shape)}")
    rows = ops.arange(batch_size, dtype="int32") if rows is None else ops.convert_to_tensor(rows)
    if len(rows.shape) != 1:
        raise ValueError(
            f"sample: expected rows of shape (batch,), a number for each sentence, received shape "
            f"{tuple(rows.shape)}"
        )
    rules = SearchRules(
        "sample",
        batch_size=batch_size,
        max_length=max_length,
        limits=limits,
        min_length=min_length,
        forced_prefix=forced_prefix,
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        source_mask=source_mask,
        alignment=alignment,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
    )
    keys = hypothesis_keys(seed, rows, samples)  # (B, K)

    def choose(worth: Any, position: Any) -> tuple[Any, Any]:
        token = draw(worth, position, seed, keys, temperature, top_k, top_p)
        return token, _look_up(worth, ops.arange(samples, dtype="int32"), token)

    found = _follow(
        choose,
        step,
        state,
        rules,
        hypotheses=samples,
        max_length=max_length,
        return_attention=return_attention,
    )
    if samples == 1:
        return found
    _, order = ops.top_k(found["scores"], samples)  # (B, K)
    return {name: None if x is None else _take_beams(x, order) for name, x in found.items()}


def beam(
    step: Step,
    state: Any,
    *,
    batch_size: int,
    max_length: int,
    beams: int = 4,
    n_best: int = 1,
    groups: int = 1,
    diversity_penalty: float = 0.0,
    limits: Any = None,
    min_length: int = 0,
    forced_prefix: Any = None,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    source_mask: Any = None,
    return_attention: bool = False,
    alignment: Callable[[Any], Any] | None = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
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

    Repetition: with a repetition penalty theta, log P in all of this is log P~, in which each token that
    its hypothesis has said before counts theta * log p instead of log p. (Keskar et al. divide or multiply
    logits by their sign; log-probabilities have one sign, and do not change when all logits are shifted.)
    So it steers the search and enters the score, like the other penalties; "log_probabilities" stay the
    model's. `no_repeat_ngram` = n bars tokens that would complete n tokens in a row that the hypothesis
    holds already. END is never barred, and where nothing else may be said, as under a forced prefix, the
    repetition is.

    Diversity: the beams are divided into groups, each a beam search of its own. At each position the
    groups choose in turn, and a token that c hypotheses of the groups before have just chosen costs
    c * `diversity_penalty` in the choice of which continuations live on, and nowhere else. END costs
    nothing: to end takes no place in a beam. Each group keeps n best finished hypotheses of its own. Of
    these are returned, leaving out every text that came before: the best of each group, then the second
    of each, and so on (the better score first) until there are n, which are sorted by score. So no group
    crowds out the others, and no text fills two places.

    Args:
        step: The model (see the top of this file).
        state: The model's state before the first token; K = `beams`.
        batch_size: B.
        max_length: Most tokens of a hypothesis, END not counted; an int, or a scalar tensor that XLA
            knows when it compiles, such as one made from a shape.
        beams: K, the number of live hypotheses.
        n_best: N, the number of hypotheses returned.
        groups: G, a divisor of `beams`; 1 is plain beam search.
        diversity_penalty: 0 or more; needs at least two groups.
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
        repetition_penalty: theta, 1 or more; 1 is no penalty.
        no_repeat_ngram: n, the length of what may not be said twice; 0 allows repetition.

    Returns:
        A dict, the best hypothesis first, with L = max_length + 1:

        - "tokens": int32 (B, N, L), END included, then PAD;
        - "scores": float32 (B, N);
        - "log_probabilities": float32 (B, N), the model's log P;
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
        Wu et al. 2016, "Google's Neural Machine Translation System", section 7 (the score);
        Keskar et al. 2019, "CTRL", section 4.1 (repetition penalty);
        Paulus et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", section 2.5 (n-grams);
        Vijayakumar et al. 2018, "Diverse Beam Search for Improved Description of Complex Scenes", section
        4 (groups, with Hamming diversity).
    """
    for name, value in (("beams", beams), ("n_best", n_best), ("groups", groups)):
        if value < 1:
            raise ValueError(f"beam: expected {name} of at least 1, received {value}")
    if beams % groups:
        raise ValueError(f"beam: expected groups to be a divisor of beams={beams}, received {groups}")
    if not 0 <= diversity_penalty < math.inf:
        raise ValueError(
            f"beam: expected a finite diversity_penalty of at least 0, received {diversity_penalty}"
        )
    if diversity_penalty and groups == 1:
        raise ValueError(
            f"beam: expected groups of at least 2 with diversity_penalty={diversity_penalty}, received 1; "
            "the groups differ from each other, not the beams within a group"
        )
    rules = SearchRules(
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
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
    )
    token = ops.full((batch_size, beams), START_ID, dtype="int32")
    state = keras.tree.map_structure(ops.convert_to_tensor, state)
    # All hypotheses of a group are the same at first: only one of them lives.
    first = np.where(np.arange(beams) % (beams // groups) == 0, 0.0, LOWEST).astype("float32")  # (K,)
    log_probability = ops.zeros((batch_size, beams)) + first
    said = ops.full((batch_size, beams, max_length + 1), PAD_ID, dtype="int32") if rules.reads else ()
    carry = {
        "position": ops.convert_to_tensor(0, dtype="int32"),
        "token": token,
        "state": join_hypotheses(state),
        "log_probability": log_probability,
        # What only some rules need is () for the others, and costs them nothing.
        "penalized": log_probability if rules.penalizes else (),
        "said": said,
        "coverage": rules.no_coverage(beams),
        # A finished hypothesis is where it ended: `end`, the position of its END, and `beam`, the live
        # hypothesis (counted within its group) that it ended. Its tokens are read off the history when
        # all is over. Groups finish apart, as if they were sentences.
        "finished": {
            "score": ops.full((batch_size * groups, n_best), LOWEST),
            "log_probability": ops.full((batch_size * groups, n_best), LOWEST),
            "end": ops.full((batch_size * groups, n_best), -1, dtype="int32"),
            "beam": ops.zeros((batch_size * groups, n_best), dtype="int32"),
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
        best_live = ops.max(_by_group(rules.worth(carry), groups), axis=1)  # (B * G,)
        worst_finished = carry["finished"]["score"][:, -1]  # (B * G,)
        return ops.any((best_live > LOWEST) & (rules.bound(best_live, groups) > worst_finished))

    def extend(carry: dict[str, Any]) -> dict[str, Any]:
        position, said = carry["position"], carry["said"]
        logits, state, attention = step(carry["token"], split_hypotheses(carry["state"], batch_size, beams))
        coverage = rules.cover(carry["coverage"], attention)
        totals, penalized = rules.extend(
            carry["log_probability"], carry["penalized"], said, logits, position
        )  # each (B, K, V)
        ended = totals[..., END_ID]  # (B, K)
        worth = penalized[..., END_ID] if rules.penalizes else ended  # (B, K)
        scores = ops.where(ended > LOWEST, rules.score(worth, position + 1, coverage), LOWEST)
        finished = _best_finished(
            carry["finished"], _by_group(scores, groups), _by_group(ended, groups), position
        )
        worth, parent, token = _choose_in_turn(penalized, groups, diversity_penalty)  # each (B, K)
        if rules.reads:
            said = _say(_take_beams(said, parent), position, token)
        kept = attention if return_attention and attention is not None else ()
        written = {"token": token, "parent": parent, "attention": kept}
        return {
            "position": position + 1,
            "token": token,
            "state": join_hypotheses(_take_beams(state, parent)),
            "log_probability": _look_up(totals, parent, token) if rules.penalizes else worth,
            "penalized": worth if rules.penalizes else (),
            "said": said,
            "coverage": _take_beams(coverage, parent),
            "finished": finished,
            "history": _write(carry["history"], position, written),
        }

    last = ops.while_loop(unsettled, extend, carry, maximum_iterations=max_length + 1)
    finished = last["finished"]
    if groups > 1:
        finished = _merge_groups(finished, last["history"], groups)
    tokens, path = _backtrack(last["history"], finished)  # each (L, B, N)
    attention = _take_path(last["history"]["attention"], path, finished["end"])  # (L, B, N, ...)
    return {
        "tokens": _hypotheses_first(tokens),  # (B, N, L)
        "scores": finished["score"],
        "log_probabilities": finished["log_probability"],
        "lengths": finished["end"] + 1,
        "attention": _hypotheses_first(attention),  # (B, N, L, ...)
    }


# === Hypotheses that go on alone: greedy search and sampling ===


def _follow(
    choose: Callable[[Any, Any], tuple[Any, Any]],
    step: Step,
    state: Any,
    rules: SearchRules,
    *,
    hypotheses: int,
    max_length: int,
    return_attention: bool,
) -> dict[str, Any]:
    """Lets K hypotheses per source grow, each by the token that is chosen for it, until it is END.

    `choose(worth, position)` gets what each hypothesis would be worth with each token added, (B, K, V), and
    returns the tokens and what they make of their hypotheses, each (B, K). Returns what `beam` returns,
    unsorted.
    """
    batch_size = rules.batch_size
    token = ops.full((batch_size, hypotheses), START_ID, dtype="int32")
    state = keras.tree.map_structure(ops.convert_to_tensor, state)
    carry = {
        "position": ops.convert_to_tensor(0, dtype="int32"),
        "token": token,
        "state": join_hypotheses(state),
        "running": ops.ones((batch_size, hypotheses), dtype="bool"),
        "log_probability": ops.zeros((batch_size, hypotheses)),
        "penalized": ops.zeros((batch_size, hypotheses)) if rules.penalizes else (),
        "length": ops.zeros((batch_size, hypotheses), dtype="int32"),
        "coverage": rules.no_coverage(hypotheses),
        "tokens": ops.full((max_length + 1, batch_size, hypotheses), PAD_ID, dtype="int32"),
        "attention": _attention_history(step, token, state, max_length + 1) if return_attention else (),
    }

    def extend(carry: dict[str, Any]) -> dict[str, Any]:
        position, running = carry["position"], carry["running"]
        state = split_hypotheses(carry["state"], batch_size, hypotheses)
        logits, state, attention = step(carry["token"], state)
        said = ops.transpose(carry["tokens"], (1, 2, 0)) if rules.reads else ()  # (B, K, L)
        totals, penalized = rules.extend(
            carry["log_probability"], carry["penalized"], said, logits, position
        )  # each (B, K, V)
        token, worth = choose(penalized, position)  # each (B, K)
        log_probability = worth
        if rules.penalizes:
            log_probability = _look_up(totals, ops.arange(hypotheses, dtype="int32"), token)
            worth = ops.where(running, worth, carry["penalized"])
        token = ops.where(running, token, PAD_ID)
        coverage = rules.cover(carry["coverage"], attention)
        kept = attention if return_attention and attention is not None else ()
        kept = keras.tree.map_structure(lambda x: _zero_unless(running, x), kept)
        return {
            "position": position + 1,
            "token": token,
            "state": join_hypotheses(state),
            "running": running & (token != END_ID),
            "log_probability": ops.where(running, log_probability, carry["log_probability"]),
            "penalized": worth if rules.penalizes else (),
            "length": carry["length"] + ops.cast(running, "int32"),
            "coverage": ops.where(ops.expand_dims(running, -1), coverage, carry["coverage"]),
            "tokens": _write(carry["tokens"], position, token),
            "attention": _write(carry["attention"], position, kept),
        }

    last = ops.while_loop(
        lambda carry: ops.any(carry["running"]), extend, carry, maximum_iterations=max_length + 1
    )
    return {
        "tokens": _hypotheses_first(last["tokens"]),  # (B, K, L)
        "scores": rules.score(rules.worth(last), last["length"], last["coverage"]),
        "log_probabilities": last["log_probability"],
        "lengths": last["length"],
        "attention": _hypotheses_first(last["attention"]),  # (B, K, L, ...)
    }


def join_hypotheses(state: Any) -> Any:
    """Every leaf (B, K, ...) of a state as (B * K, ...), as decoders compute with it.

    In any other shape XLA does not see that a cache, which it writes into, is the one that it carries on: it
    copies the whole of it at every position.
    """

    def join(x: Any) -> Any:
        batch, hypotheses, *rest = ops.shape(x)
        return ops.reshape(x, (batch * hypotheses, *rest))  # (B * K, ...)

    return _map_own(join, state)


def split_hypotheses(state: Any, batch: Any, hypotheses: int) -> Any:
    """What `join_hypotheses` returned as it was: every leaf (B * K, ...) as (B, K, ...)."""
    return _map_own(lambda x: ops.reshape(x, (batch, hypotheses, *ops.shape(x)[1:])), state)


def _map_own(function: Callable[[Any], Any], state: Any) -> Any:
    """Applies a function to the leaves of a state that belong to the hypotheses."""
    leaves = [
        x if "shared" in path or not len(x.shape) else function(x)
        for path, x in keras.tree.flatten_with_path(state)
    ]
    return keras.tree.pack_sequence_as(state, leaves)


# === One step of the beam ===


def _choose_in_turn(worth: Any, groups: int, diversity_penalty: float) -> tuple[Any, Any, Any]:
    """The continuations that live on, group after group: their worth, parent and token, each (B, K)."""
    if groups == 1:
        return _best_continuations(worth)
    _, beams, vocabulary = ops.shape(worth)
    size = beams // groups
    chosen: list[tuple[Any, Any, Any]] = []
    for group in range(groups):
        own = worth[:, group * size : (group + 1) * size]  # (B, K / G, V)
        price = 0.0
        if chosen and diversity_penalty:
            before = ops.concatenate([token for _, _, token in chosen], axis=1)  # (B, group * K / G)
            counts = ops.cast(count_tokens(before, vocabulary), "float32")  # (B, V)
            price = diversity_penalty * ops.expand_dims(counts, 1)  # (B, 1, V)
        _, parent, token = _best_continuations(own - price)  # each (B, K / G)
        chosen.append((_look_up(own, parent, token), parent + group * size, token))
    return tuple(ops.concatenate(parts, axis=1) for parts in zip(*chosen, strict=True))


def _best_continuations(totals: Any) -> tuple[Any, Any, Any]:
    """The K best of all tokens but END after all beams: log P, parent and token, each (B, K).

    Top-k in two stages, because sorting is slow and taking a maximum is fast: the K best lie in the K
    blocks whose maxima are best, and only these are sorted.
    """
    batch, beams, vocabulary = ops.shape(totals)
    totals = ops.where(ops.arange(vocabulary, dtype="int32") == END_ID, LOWEST, totals)
    width = block_width(vocabulary)
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


def _by_group(x: Any, groups: int) -> Any:
    """Takes the groups of (B, K) apart: (B * G, K / G)."""
    if groups == 1:
        return x
    batch, beams = ops.shape(x)
    return ops.reshape(x, (batch * groups, beams // groups))


def _say(said: Any, position: Any, token: Any) -> Any:
    """Adds the tokens (B, K) at a position to what was said, (B, K, L)."""
    here = ops.arange(ops.shape(said)[-1], dtype="int32") == position  # (L,)
    return ops.where(here, ops.expand_dims(token, -1), said)


def _look_up(totals: Any, parent: Any, token: Any) -> Any:
    """The totals (B, K, V) at the parents, (B, N) or (N,), and the tokens, (B, N)."""
    batch, beams, vocabulary = ops.shape(totals)
    flat = ops.reshape(totals, (batch, beams * vocabulary))  # (B, K * V)
    return ops.take_along_axis(flat, parent * vocabulary + token, axis=1)


def _take_beams(nest: Any, index: Any) -> Any:
    """Reorders every leaf (B, K, ...) of a state by `index`, int (B, N), to (B, N, ...)."""
    batch, wanted = ops.shape(index)

    def take(x: Any) -> Any:
        _, beams, *rest = ops.shape(x)
        # Whole rows of a flat tensor: take_along_axis would make an index for every single number.
        rows = ops.expand_dims(ops.arange(batch, dtype="int32") * beams, 1) + index  # (B, N)
        flat = ops.reshape(x, (batch * beams, *rest))  # (B * K, ...)
        return ops.reshape(ops.take(flat, ops.reshape(rows, (-1,)), axis=0), (batch, wanted, *rest))

    return _map_own(take, nest)


# === The end of diverse beam search ===


def _merge_groups(finished: dict[str, Any], history: dict[str, Any], groups: int) -> dict[str, Any]:
    """The n best (B, N) of the groups' finished hypotheses, (B * G, N): see `beam` for which these are."""
    batch, beams = ops.shape(history["token"])[1:]
    n_best = finished["score"].shape[1]
    offset = ops.tile(ops.arange(groups, dtype="int32") * (beams // groups), (batch,))  # (B * G,)
    finished = {**finished, "beam": finished["beam"] + ops.expand_dims(offset, 1)}

    def by_rank(x: Any) -> Any:
        return ops.transpose(ops.reshape(x, (batch, groups, n_best)), (0, 2, 1))  # (B, N, G)

    finished = {name: by_rank(x) for name, x in finished.items()}
    _, order = ops.top_k(finished["score"], groups)  # (B, N, G)
    finished = {
        name: ops.reshape(ops.take_along_axis(x, order, axis=2), (batch, n_best * groups))
        for name, x in finished.items()
    }  # each (B, N * G)

    tokens, _ = _backtrack(history, finished)  # (L, B, N * G)
    same = ops.all(ops.expand_dims(tokens, 3) == ops.expand_dims(tokens, 2), axis=0)  # (B, N * G, N * G)
    place = ops.arange(n_best * groups, dtype="int32")  # (N * G,)
    repeated = ops.any(same & (ops.expand_dims(place, 1) > place), axis=-1)  # (B, N * G)
    missing = {"score": LOWEST, "log_probability": LOWEST, "end": -1, "beam": 0}
    finished = {name: ops.where(repeated, missing[name], x) for name, x in finished.items()}

    # The first n that are there, and these in the order of their scores.
    waiting = ops.where(finished["end"] >= 0, place, place + n_best * groups)  # (B, N * G)
    _, first = ops.top_k(-waiting, n_best)  # (B, N)
    finished = {name: ops.take_along_axis(x, first, axis=1) for name, x in finished.items()}
    _, order = ops.top_k(finished["score"], n_best)  # (B, N)
    return {name: ops.take_along_axis(x, order, axis=1) for name, x in finished.items()}


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
