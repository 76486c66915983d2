"""Sampling: its distribution, its rules and its reproducibility, on the toy model of the other searches."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from test_search import (
    MAX_LENGTH,
    PREFIX,
    SETTINGS,
    SOURCE_MASK,
    Reference,
    ToyModel,
    check,
    eager_to_end,
    hypotheses,
)

from attention_zoo.models import search, search_drawing
from attention_zoo.models.search_rules import LOWEST
from attention_zoo.models.tokenizer import END_ID, START_ID


@pytest.fixture(scope="module")
def model():
    return ToyModel(seed=7)


def draw_tensors(model, samples=4, seed=(3, 5), **options):
    found = search.sample(
        model.step, model.state(samples), batch_size=model.batch, max_length=MAX_LENGTH, samples=samples,
        seed=seed, **options,
    )  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def draw(model, **options):
    return {name: value.numpy() for name, value in draw_tensors(model, **options).items()}


def draw_compiled(model, **options):
    program = tf.function(lambda: draw_tensors(model, **options), jit_compile=True, autograph=False)
    return {name: value.numpy() for name, value in program().items()}


# === The distribution ===


def next_probabilities(reference, sentence, tokens, temperature=1.0, top_k=None, top_p=None):
    """The distribution of the next token, said in plain Python: {token: probability}."""
    following = reference.model.next_log_probabilities(sentence, tokens)
    weights = {
        token: np.exp(following[token] * (reference.theta if token in tokens else 1.0) / temperature)
        for token in reference.allowed(sentence, tokens)
    }
    ranking = sorted(weights, key=lambda token: (-weights[token], token))[:top_k]
    total = sum(weights[token] for token in ranking)
    kept, reached = [], 0.0
    for token in ranking:
        if top_p is not None and reached >= top_p:
            break
        kept.append(token)
        reached += weights[token] / total
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


def all_probabilities(reference, sentence, **options):
    """The probability of every whole hypothesis that can be drawn."""
    probabilities, growing = {}, {(): 1.0}
    while growing:
        extended = {
            (*tokens, token): probability * p
            for tokens, probability in growing.items()
            for token, p in next_probabilities(reference, sentence, tokens, **options).items()
        }
        probabilities |= {y: p for y, p in extended.items() if y[-1] == END_ID}
        growing = {y: p for y, p in extended.items() if y[-1] != END_ID}
    return probabilities


def check_frequencies(drawn, probabilities):
    """Pearson's chi-square, the rare outcomes taken together; about one in 30000 seeds would fail."""
    assert sum(probabilities.values()) == pytest.approx(1.0)
    counts = collections.Counter(drawn)
    assert set(counts) <= set(probabilities)
    size = len(drawn)
    common = [y for y, p in probabilities.items() if p * size >= 10]
    expected = np.array([probabilities[y] * size for y in common])
    observed = np.array([counts[y] for y in common])
    if size - expected.sum() >= 1:
        expected = np.append(expected, size - expected.sum())
        observed = np.append(observed, size - observed.sum())
    chi_square = ((observed - expected) ** 2 / expected).sum()
    # Wilson and Hilferty: its cube root is nearly normal.
    degrees = max(len(expected) - 1, 1)
    spread = 2 / (9 * degrees)
    assert ((chi_square / degrees) ** (1 / 3) - (1 - spread)) / np.sqrt(spread) < 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 2},
        {"top_p": 0.7},
        {"top_k": 3, "top_p": 0.8, "temperature": 1.5},
        {"top_k": 2, "min_length": 2},
        {"repetition_penalty": 2.0, "no_repeat_ngram": 2},
        {"top_p": 0.9, "limits": np.array([2, 0, 3], "int32"), "forced_prefix": PREFIX},
    ],
    ids=str,
)
def test_texts_are_drawn_with_their_probabilities(model, options):
    draws = {name: options[name] for name in ("temperature", "top_k", "top_p") if name in options}
    reference = Reference(model, **options)
    found = draw(model, samples=2000, **options)
    for sentence in range(model.batch):
        check_frequencies(hypotheses(found, sentence), all_probabilities(reference, sentence, **draws))


def flat_draws(logits, batch_size, **options):
    """The first tokens of hypotheses of a model that always says the same, int (B, K)."""

    def step(token, state):
        return ops.broadcast_to(logits, (*ops.shape(token), len(logits))), state, None

    samples = options.get("samples", 1)
    found = search.sample(step, (), batch_size=batch_size, max_length=1, **{"seed": (0, 0), **options})
    assert found["tokens"].shape == (batch_size, samples, 2)
    return found["tokens"].numpy()[:, :, 0]


def test_sentences_are_drawn_independently():
    tokens = flat_draws(np.array([0, 0, 1, 2, 3, 1], "float32"), 3000)[:, 0]
    p = np.exp([1, 2, 3, 1]) / np.exp([1, 2, 3, 1]).sum()
    check_frequencies(tokens.tolist(), {i + 2: p[i] for i in range(4)})
    pairs = {(i + 2, j + 2): p[i] * p[j] for i in range(4) for j in range(4)}
    check_frequencies([(int(a), int(b)) for a, b in tokens.reshape(-1, 2)], pairs)


def test_samples_of_a_sentence_are_independent():
    """Two of them agree as often as chance would have it."""
    tokens = flat_draws(np.zeros(7, "float32"), 2000, samples=2, seed=(1, 9))
    check_frequencies((tokens[:, 0] == tokens[:, 1]).tolist(), {True: 0.2, False: 0.8})


def test_many_rare_tokens_get_their_share():
    """In a large vocabulary half of the probability lies on words of one in eight thousand each."""
    vocabulary = 4096 + 4
    logits = np.zeros(vocabulary, "float32")
    logits[[0, START_ID, END_ID]] = -100.0
    logits[3] = np.log(4096)
    tokens = flat_draws(logits, 4, samples=500)
    buckets = np.where(tokens == 3, -1, (tokens - 4) // 512).ravel()
    check_frequencies(buckets.tolist(), {-1: 0.5, **dict.fromkeys(range(8), 0.5 / 8)})


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("step", [0.0, 0.5, 4.0], ids=["no_ties", "ties", "many_ties"])
def test_nucleus_equals_sorting(top_p, step):
    logits = np.random.default_rng(0).normal(size=(3, 2, 300), scale=4.0).astype("float32")
    logits = np.round(logits / step) * step if step else logits
    logits = (logits - logits.max(-1, keepdims=True)).astype("float32")
    weights = np.exp(logits) * (np.arange(300) % 7 > 0)  # some may not be said
    found = search_drawing.nucleus(ops.array(logits), ops.array(weights.astype("float32")), top_p)
    for i, j in np.ndindex(3, 2):
        order = np.argsort(-weights[i, j], kind="stable")
        mass = np.cumsum(weights[i, j][order], dtype="float64")
        expected = set(order[: np.searchsorted(mass, top_p * mass[-1]) + 1])
        assert set(np.flatnonzero(found[i, j] & (weights[i, j] > 0))) == expected


@pytest.mark.parametrize("candidates", [1, 5, 128, 131, 384])
def test_places_are_drawn_where_the_running_sum_passes(candidates):
    random = np.random.default_rng(candidates)
    weights = random.gamma(0.3, size=(1, 400, candidates)) * random.integers(0, 2, (1, 400, candidates))
    weights[..., random.integers(candidates)] += 0.1  # so that something can be drawn
    uniform = random.random((1, 400)).astype("float32")
    uniform[0, :2] = 0.0, 1 - 2.0**-24
    drawn = search_drawing.draw_index(ops.array(weights.astype("float32")), ops.array(uniform)).numpy()
    assert (np.take_along_axis(weights, drawn[..., None], -1) > 0).all()
    passed = np.cumsum(weights, -1) > uniform[..., None] * weights.sum(-1, keepdims=True)
    # Rounding may move a draw that lies on a border.
    assert (drawn != passed.argmax(-1)).mean() < 0.01


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_ties_go_to_the_lower_ids(options):
    assert set(flat_draws(np.zeros(6, "float32"), 200, **options)[:, 0]) == {2, 3}


def test_barred_tokens_take_no_place_among_the_best(model):
    """Were PAD, START or an early END counted first, they would fill the top 1."""
    tempting = eager_to_end(model, 20.0)
    tempting.logits[..., START_ID] = 25.0
    found = draw(tempting, samples=2, top_k=1, min_length=MAX_LENGTH)
    greedy = search.greedy(
        tempting.step, tempting.state(1), batch_size=3, max_length=MAX_LENGTH, min_length=MAX_LENGTH
    )
    for row in range(2):
        np.testing.assert_array_equal(found["tokens"][:, row], greedy["tokens"][:, 0])


@pytest.mark.parametrize("options", [{"temperature": 1e-3}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
@pytest.mark.parametrize("setting", ["plain", "min_length", "repeated_prefix"])
def test_the_limits_are_greedy_search(model, options, setting):
    reference = Reference(model, **SETTINGS[setting])
    found = draw(model, samples=1, **options, **SETTINGS[setting])
    for sentence in range(model.batch):
        check(found, reference.greedy(sentence), reference, sentence)


def test_truncation_wider_than_the_vocabulary_changes_nothing(model):
    plain = draw(model)
    for options in ({"top_k": 1000}, {"top_p": 1.0}):
        np.testing.assert_array_equal(draw(model, **options)["tokens"], plain["tokens"])


# === The result ===


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_scores_and_attention_are_the_models(model, options):
    """Whatever the temperature and the truncation; and the rules hold, the best first."""
    reference = Reference(model, **options)
    found = draw(model, temperature=2.0, top_k=3, return_attention=True, **options)
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    for sentence in range(model.batch):
        drawn = hypotheses(found, sentence)
        assert set(drawn) <= set(reference.possible(sentence))
        check(found, drawn, reference, sentence)


def test_early_exit(model):
    certain, endless = eager_to_end(model, 30.0), eager_to_end(model, -30.0)
    for toy, steps in ((certain, 1), (endless, MAX_LENGTH + 1)):
        toy.steps.assign(0)
        draw(toy)
        assert toy.steps.numpy() == steps


def test_impossible_words_are_not_drawn(model):
    strict = model.select([0, 1, 2])
    strict.logits = strict.logits.copy()
    strict.logits[..., [3, 4]] = -np.inf
    for options in ({}, {"top_k": 4}, {"top_p": 0.99}):
        found = draw(strict, samples=50, temperature=3.0, **options)
        assert not {3, 4} & set(np.unique(found["tokens"]))
        assert np.isfinite(found["scores"]).all() and found["scores"].min() > LOWEST


def test_model_without_attention(model):
    def step(token, state):
        return (*model.step(token, state)[:2], None)

    found = search.sample(
        step, model.state(4), batch_size=3, max_length=MAX_LENGTH, samples=4, seed=(3, 5),
        return_attention=True,
    )  # fmt: skip
    assert found["attention"] is None
    np.testing.assert_array_equal(found["tokens"], draw(model)["tokens"])


# === Reproducibility ===


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.6, "no_repeat_ngram": 2, "forced_prefix": PREFIX},
        {"temperature": 1.5, "top_k": 3, "top_p": 0.9, "coverage_penalty": 0.2, "source_mask": SOURCE_MASK},
    ],
    ids=["whole_vocabulary", "truncated"],
)
def test_compiled_equals_eager(model, options):
    options = {"return_attention": True, **options}
    eager, xla = draw(model, **options), draw_compiled(model, **options)
    for name, value in eager.items():
        np.testing.assert_allclose(xla[name], value, rtol=1e-5, err_msg=name)


def test_seeds(model):
    first = draw(model, samples=20)["tokens"]
    np.testing.assert_array_equal(draw(model, samples=20)["tokens"], first)
    for seed in ((3, 6), (4, 5), (5, 3)):
        assert (draw(model, samples=20, seed=seed)["tokens"] != first).any()


def test_result_does_not_depend_on_the_batch(model):
    """A sentence's row goes with it, wherever it stands."""
    options = {"samples": 20, "return_attention": True, "top_p": 0.9}
    together = draw(model, **options)
    for sentence in range(model.batch):
        alone = draw(model.select([sentence]), rows=np.array([sentence], "int32"), **options)
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][sentence], err_msg=name)


def test_equal_rows_draw_alike(model):
    twins = model.select([1, 1])
    alike = draw(twins, samples=20, rows=np.array([4, 4], "int32"))["tokens"]
    apart = draw(twins, samples=20)["tokens"]
    np.testing.assert_array_equal(alike[0], alike[1])
    assert (apart[0] != apart[1]).any()


def test_more_samples_only_add_to_the_first(model):
    few, many = draw(model, samples=3), draw(model, samples=8)
    for sentence in range(model.batch):
        missing = collections.Counter(hypotheses(few, sentence))
        missing.subtract(collections.Counter(hypotheses(many, sentence)))
        assert max(missing.values()) <= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples of at least 1"),
        ({"temperature": 0.0}, "finite temperature above 0"),
        ({"temperature": np.inf}, "finite temperature above 0"),
        ({"top_k": 0}, "top_k to be a whole number of at least 1"),
        ({"top_p": 0.0}, "top_p above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p above 0 and at most 1"),
        ({"seed": 3}, "seed of two integers"),
        ({"rows": np.zeros((3, 2), "int32")}, "rows of shape"),
        ({"repetition_penalty": 0.5}, "sample: expected a finite repetition_penalty"),
        ({"min_length": 4}, "sample: expected min_length from 0 to max_length=3"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        draw(model, **options)
