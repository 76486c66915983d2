"""Greedy and beam search against brute force in plain Python.

The toy model's logits depend on the whole history: its state is the history itself, read as a number
in base V, which looks up a row of a random table. Every sentence of a batch has a table of its own.
"""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from attention_zoo.models import search
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID

VOCABULARY = 6  # three special ids and three words
WORDS = (3, 4, 5)
MAX_LENGTH = 3
SOURCE = 4
HISTORIES = VOCABULARY ** (MAX_LENGTH + 1)


class ToyModel:
    """Random logits and attention for every history of every sentence."""

    def __init__(self, seed, batch=3, spread=1.5):
        random = np.random.default_rng(seed)
        self.batch = batch
        self.logits = random.normal(size=(batch, HISTORIES, VOCABULARY), scale=spread).astype("float32")
        attention = random.gamma(0.5, size=(batch, HISTORIES, SOURCE))
        self.attention = (attention / attention.sum(-1, keepdims=True)).astype("float32")
        self.steps = tf.Variable(0)

    def select(self, sentences):
        chosen = ToyModel.__new__(ToyModel)
        chosen.batch, chosen.steps = len(sentences), tf.Variable(0)
        chosen.logits, chosen.attention = self.logits[sentences], self.attention[sentences]
        return chosen

    # --- as the search sees it ---

    def state(self, hypotheses):
        return {"history": ops.zeros((self.batch, hypotheses), "int32"), "position": ops.array(0)}

    def step(self, token, state):
        self.steps.assign_add(1)
        start = ops.cast(token == START_ID, "int32")
        history = ops.where(start == 1, 0, state["history"] * VOCABULARY + token)
        rows = ops.expand_dims(ops.arange(self.batch), 1) * HISTORIES + history % HISTORIES
        logits = ops.take(ops.reshape(self.logits, (-1, VOCABULARY)), rows, axis=0)
        attention = ops.take(ops.reshape(self.attention, (-1, SOURCE)), rows, axis=0)
        return logits, {"history": history, "position": state["position"] + 1}, attention

    # --- as the reference sees it ---

    def history(self, tokens):
        number = 0
        for token in tokens:
            number = number * VOCABULARY + token
        return number

    def next_log_probabilities(self, sentence, tokens):
        logits = self.logits[sentence, self.history(tokens)].astype("float64")
        return logits - np.log(np.exp(logits).sum())

    def attention_of(self, sentence, hypothesis):
        """The attention paid by each token of a hypothesis: depends on the tokens before it."""
        return np.array(
            [self.attention[sentence, self.history(hypothesis[:i])] for i in range(len(hypothesis))]
        )


class Reference:
    """The rules and the score, said again in plain Python."""

    def __init__(
        self, model, limits=None, min_length=0, forced_prefix=None, length_penalty=0.0, coverage_penalty=0.0,
        source_mask=None, repetition_penalty=1.0, no_repeat_ngram=0, **_,
    ):  # fmt: skip
        self.model = model
        self.limits = [MAX_LENGTH] * model.batch if limits is None else list(limits)
        self.min_length = min_length
        self.prefix = forced_prefix
        self.alpha, self.beta = length_penalty, coverage_penalty
        self.source_mask = np.ones((model.batch, SOURCE), bool) if source_mask is None else source_mask
        self.theta, self.ngram = repetition_penalty, no_repeat_ngram

    def allowed(self, sentence, tokens):
        before = self.allowed_by_position(sentence, tokens)
        return [token for token in before if not self.repeats(tokens, token)] or before

    def repeats(self, tokens, token):
        n, extended = self.ngram, (*tokens, token)
        said = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
        return n > 0 and token != END_ID and extended[-n:] in said

    def allowed_by_position(self, sentence, tokens):
        position = len(tokens)
        if position >= self.limits[sentence]:
            return [END_ID]
        if (
            self.prefix is not None
            and position < self.prefix.shape[1]
            and self.prefix[sentence, position] != PAD_ID
        ):
            return [int(self.prefix[sentence, position])]
        return [*WORDS, END_ID] if position >= self.min_length else [*WORDS]

    def log_probability(self, sentence, hypothesis):
        return sum(
            self.model.next_log_probabilities(sentence, hypothesis[:i])[token]
            for i, token in enumerate(hypothesis)
        )

    def worth(self, sentence, hypothesis):
        """The log-probability by which the search goes."""
        return sum(
            self.model.next_log_probabilities(sentence, hypothesis[:i])[token]
            * (self.theta if token in hypothesis[:i] else 1.0)
            for i, token in enumerate(hypothesis)
        )

    def score(self, sentence, hypothesis):
        penalty = ((5 + len(hypothesis)) / 6) ** self.alpha
        coverage = self.model.attention_of(sentence, hypothesis).sum(0)[self.source_mask[sentence]]
        return self.worth(sentence, hypothesis) / penalty + self.beta * sum(
            math.log(min(covered, 1.0)) for covered in coverage
        )

    def possible(self, sentence):
        """Every hypothesis that the rules allow."""
        for length in range(self.limits[sentence] + 1):
            for words in itertools.product(WORDS, repeat=length):
                hypothesis = (*words, END_ID)
                if all(token in self.allowed(sentence, hypothesis[:i]) for i, token in enumerate(hypothesis)):
                    yield hypothesis

    def exhaustive(self, sentence, n_best):
        return sorted(self.possible(sentence), key=lambda y: -self.score(sentence, y))[:n_best]

    def beam(self, sentence, beams, n_best):
        """Textbook beam search over lists, which never stops early."""
        live, finished = [()], []
        while live:
            extended = [(*y, token) for y in live for token in self.allowed(sentence, y)]
            finished += [y for y in extended if y[-1] == END_ID]
            going_on = [y for y in extended if y[-1] != END_ID]
            live = sorted(going_on, key=lambda y: -self.worth(sentence, y))[:beams]
        return sorted(finished, key=lambda y: -self.score(sentence, y))[:n_best]

    def greedy(self, sentence):
        tokens = ()
        while END_ID not in tokens:
            extended = [(*tokens, token) for token in self.allowed(sentence, tokens)]
            tokens = max(extended, key=lambda y: self.worth(sentence, y))
        return [tokens]


PREFIX = np.array([[4, 0], [0, 5], [0, 0]], "int32")
SOURCE_MASK = np.arange(SOURCE) < np.array([[4], [3], [1]])

SETTINGS = {
    "plain": {},
    "length_penalty": {"length_penalty": 1.0},
    "strong_length_penalty": {"length_penalty": 4.0},
    "coverage_penalty": {"coverage_penalty": 0.7, "source_mask": SOURCE_MASK},
    "both_penalties": {"coverage_penalty": 0.3, "length_penalty": 0.6, "source_mask": SOURCE_MASK},
    "min_length": {"min_length": 2},
    "limits": {"limits": np.array([2, 0, 3], "int32"), "length_penalty": 1.0},
    "limits_below_min_length": {"limits": np.array([1, 3, 2], "int32"), "min_length": 2},
    "forced_prefix": {"forced_prefix": PREFIX, "length_penalty": 1.0},
    "repetition_penalty": {"repetition_penalty": 3.0, "min_length": 3},
    "no_repeated_word": {"no_repeat_ngram": 1, "min_length": 3},
    "no_repeated_pair": {"no_repeat_ngram": 2, "length_penalty": 2.0},
    "repeated_prefix": {
        "forced_prefix": np.array([[4, 4, 0], [0, 5, 5], [3, 3, 3]], "int32"),
        "no_repeat_ngram": 1,
        "repetition_penalty": 1.3,
        "length_penalty": 1.0,
    },
}


@pytest.fixture(scope="module")
def model():
    return ToyModel(seed=7)


def search_tensors(model, function, **options):
    beams = options.get("beams", 4) if function is search.beam else 1
    found = function(model.step, model.state(beams), batch_size=model.batch, max_length=MAX_LENGTH, **options)
    return {name: value for name, value in found.items() if value is not None}


def run(model, function=search.beam, **options):
    return {name: value.numpy() for name, value in search_tensors(model, function, **options).items()}


def compiled(model, function=search.beam, **options):
    program = tf.function(
        lambda: search_tensors(model, function, **options), jit_compile=True, autograph=False
    )
    return {name: value.numpy() for name, value in program().items()}


def hypotheses(found, sentence):
    """The rows of a result as tuples of tokens, without padding."""
    rows = []
    for tokens, length in zip(found["tokens"][sentence], found["lengths"][sentence], strict=True):
        assert (tokens[length:] == PAD_ID).all()
        rows.append(tuple(int(token) for token in tokens[:length]))
    return rows


def check(found, expected, reference, sentence):
    """Same hypotheses, scores, log-probabilities and, if it is there, attention."""
    assert hypotheses(found, sentence)[: len(expected)] == expected
    for row, hypothesis in enumerate(expected):
        np.testing.assert_allclose(
            found["scores"][sentence, row], reference.score(sentence, hypothesis), rtol=1e-5
        )
        np.testing.assert_allclose(
            found["log_probabilities"][sentence, row],
            reference.log_probability(sentence, hypothesis),
            rtol=1e-5,
        )
        if "attention" in found:
            attention = np.zeros((MAX_LENGTH + 1, SOURCE))
            attention[: len(hypothesis)] = reference.model.attention_of(sentence, hypothesis)
            np.testing.assert_allclose(found["attention"][sentence, row], attention, rtol=1e-6)


# === Against brute force ===


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_beam_with_enough_beams_is_exhaustive_search(model, options):
    reference = Reference(model, **options)
    found = run(model, beams=len(WORDS) ** MAX_LENGTH, n_best=3, return_attention=True, **options)
    for sentence in range(model.batch):
        check(found, reference.exhaustive(sentence, 3), reference, sentence)


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_beam_equals_textbook_beam(model, options, beams):
    reference = Reference(model, **options)
    found = run(model, beams=beams, n_best=2, **options)
    for sentence in range(model.batch):
        check(found, reference.beam(sentence, beams, 2), reference, sentence)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_greedy_equals_reference(model, options):
    reference = Reference(model, **options)
    found = run(model, search.greedy, return_attention=True, **options)
    for sentence in range(model.batch):
        check(found, reference.greedy(sentence), reference, sentence)


def test_search_finds_more_than_greedy():
    """The tests above would be hollow if all searches agreed."""
    models = [ToyModel(seed) for seed in range(5)]
    wider = [run(m, beams=27)["scores"] - run(m, search.greedy)["scores"] for m in models]
    assert np.min(wider) > -1e-5
    assert np.mean(np.array(wider) > 1e-3) > 0.2


@pytest.mark.parametrize(
    ("option", "value"), [("repetition_penalty", 3.0), ("no_repeat_ngram", 1), ("no_repeat_ngram", 2)]
)
def test_repetition_is_avoided_only_on_request(model, option, value):
    """A model in love with one word: the tests above would be hollow if nothing were repeated."""
    fond = eager_to_end(model, -20.0)
    fond.logits = fond.logits * 0.1 + np.array([-20, -20, 0, 0, 0.8, 0], "float32")
    for function in (search.greedy, search.beam):
        plain = run(fond, function, min_length=3)
        careful = run(fond, function, min_length=3, **{option: value})
        assert all(hypotheses(plain, sentence) == [(4, 4, 4, END_ID)] for sentence in range(3))
        assert not any(hypotheses(careful, sentence) == [(4, 4, 4, END_ID)] for sentence in range(3))


def test_log_probabilities_hold_no_repetition_penalty(model):
    """What is returned as the model's is the model's; only the score is lower."""
    options = {"forced_prefix": np.array([[4, 4, END_ID]] * 3, "int32")}
    for function in (search.greedy, search.beam):
        plain, penalized = (
            run(model, function, **options),
            run(model, function, repetition_penalty=2.0, **options),
        )
        np.testing.assert_allclose(plain["log_probabilities"], penalized["log_probabilities"], rtol=1e-6)
        assert (penalized["scores"] < plain["scores"]).all()


# === Compiled ===


@pytest.mark.parametrize(
    "options",
    [
        {"beams": 3, "n_best": 2, "length_penalty": 0.6, "coverage_penalty": 0.2, "source_mask": SOURCE_MASK},
        {"beams": 3, "limits": np.array([1, 3, 2], "int32"), "min_length": 1, "forced_prefix": PREFIX},
        {"beams": 3, "repetition_penalty": 1.6, "no_repeat_ngram": 2, "length_penalty": 1.0},
    ],
    ids=["penalties", "limits_and_prefix", "repetition"],
)
def test_compiled_beam_equals_eager(model, options):
    eager, xla = (
        run(model, return_attention=True, **options),
        compiled(model, return_attention=True, **options),
    )
    for name, value in eager.items():
        np.testing.assert_allclose(xla[name], value, rtol=1e-5, err_msg=name)


def test_compiled_greedy_equals_eager(model):
    options = {"return_attention": True, "coverage_penalty": 0.2, "source_mask": SOURCE_MASK, "min_length": 1}
    eager, xla = run(model, search.greedy, **options), compiled(model, search.greedy, **options)
    for name, value in eager.items():
        np.testing.assert_allclose(xla[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_unknown_batch_size(model, function):
    """A graph that is traced once for all batch sizes, as a SavedModel without XLA needs it."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)], autograph=False)
    def decode(limits):
        batch = ops.shape(limits)[0]
        k = 1 if function is search.greedy else 4
        logits = tf.constant(model.logits[0, :, :])

        def step(token, state):
            return tf.gather(logits, state), state * VOCABULARY + token, tf.gather(model.attention[0], state)

        return function(
            step, ops.zeros((batch, k), "int32"), batch_size=batch, max_length=MAX_LENGTH, limits=limits,
            return_attention=True,
        )  # fmt: skip

    for batch in (1, 3):
        found = decode(np.full((batch,), MAX_LENGTH, "int32"))
        assert found["tokens"].shape == (batch, 1, MAX_LENGTH + 1)
        assert found["attention"].shape == (batch, 1, MAX_LENGTH + 1, SOURCE)


def eager_to_end(model, end_logit):
    """A copy of the model for which END is as likely everywhere as its logit says."""
    changed = model.select([0, 1, 2])
    changed.logits = changed.logits.copy()
    changed.logits[..., END_ID] = end_logit
    return changed


@pytest.mark.parametrize("function", [search.greedy, search.beam])
@pytest.mark.parametrize("mode", [run, compiled])
def test_early_exit(model, function, mode):
    certain, endless = eager_to_end(model, 30.0), eager_to_end(model, -30.0)
    for toy in (certain, endless):
        toy.steps.assign(0)
        mode(toy, function)
    # END is certain at once, and no hypothesis can beat it.
    assert certain.steps.numpy() == 1
    assert endless.steps.numpy() == MAX_LENGTH + 1


def test_exit_at_the_longest_limit(model):
    endless = eager_to_end(model, -30.0)
    endless.steps.assign(0)
    run(endless, limits=np.array([0, 1, 1], "int32"))
    assert endless.steps.numpy() == 2


# === Independence ===


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_result_does_not_depend_on_the_batch(model, function):
    options = {"length_penalty": 1.0, "return_attention": True}
    together = run(model, function, **options)
    for sentence in range(model.batch):
        alone = run(model.select([sentence]), function, **options)
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][sentence], err_msg=name)


def test_a_sentence_that_is_over_keeps_its_result(model):
    """Its batch goes on for the others' sake; what it found must stay."""
    certain = eager_to_end(model, 30.0)
    short = VOCABULARY ** (MAX_LENGTH - 1)  # histories below this number have fewer words than the limit
    certain.logits[1:, :short, END_ID] = -30.0
    for function in (search.greedy, search.beam):
        found = run(certain, function)
        assert hypotheses(found, 0) == [(END_ID,)]
        assert found["lengths"][1:].min() == MAX_LENGTH + 1
        np.testing.assert_allclose(found["log_probabilities"][0], 0.0, atol=1e-6)


def test_finished_hypotheses_keep_their_score():
    """The best ends early. Were it to collect more log-probabilities, the long one would win."""
    toy = ToyModel(seed=1, batch=1)
    toy.logits[:] = -20.0
    toy.logits[..., 3] = math.log(0.5)
    toy.logits[..., 4] = math.log(0.5)
    toy.logits[0, 0] = [-20, -20, math.log(0.4), math.log(0.6), -20, -20]
    found = run(toy, beams=2, n_best=2)
    assert hypotheses(found, 0)[0] == (END_ID,)
    np.testing.assert_allclose(found["scores"][0, 0], math.log(0.4), rtol=1e-4)


def test_padded_source_positions_do_not_count(model):
    padded = model.select([0, 1, 2])
    padded.attention = np.where(SOURCE_MASK[:, None], model.attention, 0.0)
    options = {"coverage_penalty": 0.5, "source_mask": SOURCE_MASK}
    np.testing.assert_allclose(run(padded, **options)["scores"], run(model, **options)["scores"])
    assert np.isfinite(run(padded, coverage_penalty=0.5, source_mask=SOURCE_MASK | True)["scores"]).all()


# === Corners ===


def test_fewer_hypotheses_than_beams(model):
    found = run(model, beams=4, n_best=6, limits=np.array([1, 0, 1], "int32"), return_attention=True)
    lowest = np.finfo("float32").min
    assert [sorted(row) for row in found["lengths"].tolist()] == [
        [0, 0, 1, 2, 2, 2],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 1, 2, 2, 2],
    ]
    for name in ("scores", "log_probabilities"):
        assert (found[name][found["lengths"] == 0] == lowest).all()
        assert (found[name][found["lengths"] > 0] > -100).all()
    assert (found["tokens"][found["lengths"] == 0] == PAD_ID).all()
    assert (found["attention"][found["lengths"] == 0] == 0).all()


@pytest.mark.parametrize("vocabulary", [4, 7, 128, 131, 200, 384])
def test_best_continuations_are_the_best(vocabulary):
    """The blocks that speed up the search change nothing, whatever the vocabulary is divisible by."""
    totals = np.random.default_rng(vocabulary).normal(size=(2, 5, vocabulary)).astype("float32")
    best, parent, token = (ops.convert_to_numpy(x) for x in search._best_continuations(ops.array(totals)))
    totals[..., END_ID] = -np.inf
    expected = np.sort(totals.reshape(2, -1), axis=-1)[:, ::-1][:, :5]
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(totals[np.arange(2)[:, None], parent, token], expected)


def test_never_generates_padding_or_start(model):
    tempting = model.select([0, 1, 2])
    tempting.logits = tempting.logits.copy()
    tempting.logits[..., [PAD_ID, START_ID]] = 20.0
    for function in (search.greedy, search.beam):
        found = run(tempting, function)
        for sentence in range(3):
            assert not {PAD_ID, START_ID} & set(hypotheses(found, sentence)[0])
        # Their probability is lost, not shared out among the others.
        assert found["log_probabilities"].max() < -10


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_impossible_words_do_no_harm(model, function):
    strict = model.select([0, 1, 2])
    strict.logits = strict.logits.copy()
    strict.logits[..., [3, 4]] = -np.inf
    found = run(strict, function, coverage_penalty=0.1, source_mask=SOURCE_MASK, length_penalty=1.0)
    for name, value in found.items():
        assert not np.isnan(value).any(), name
    assert set(np.unique(found["tokens"])) <= {PAD_ID, END_ID, 5}


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_prefix_longer_than_the_limit(model, function):
    prefix = np.full((3, 9), 4, "int32")
    found = run(model, function, forced_prefix=prefix)
    assert hypotheses(found, 1) == [(4, 4, 4, END_ID)]


def test_forced_end(model):
    found = run(model, forced_prefix=np.array([[4, END_ID]] * 3, "int32"), min_length=3)
    assert hypotheses(found, 0) == [(4, END_ID)]


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_model_without_attention(model, function):
    def step(token, state):
        return (*model.step(token, state)[:2], None)

    k = 1 if function is search.greedy else 4
    options = {"batch_size": 3, "max_length": MAX_LENGTH}
    found = function(step, model.state(k), return_attention=True, **options)
    assert found["attention"] is None
    np.testing.assert_array_equal(found["tokens"], run(model, function)["tokens"])
    with pytest.raises(ValueError, match="expected a model with attention"):
        function(step, model.state(k), coverage_penalty=1.0, source_mask=SOURCE_MASK, **options)


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_nested_attention_and_alignment(model, function):
    """Two layers' attention with several heads, of which one mean counts as the alignment."""

    def step(token, state):
        logits, state, attention = model.step(token, state)
        heads = ops.stack([attention * 0.5, attention * 1.5], axis=2)  # (B, K, H, S)
        return logits, state, {"first": heads, "last": [attention]}

    k = 1 if function is search.greedy else 4
    options = {"coverage_penalty": 0.5, "source_mask": SOURCE_MASK, "return_attention": True}
    found = function(
        step, model.state(k), batch_size=3, max_length=MAX_LENGTH,
        alignment=lambda attention: ops.mean(attention["first"], axis=2), **options,
    )  # fmt: skip
    plain = run(model, function, **options)
    np.testing.assert_allclose(found["scores"], plain["scores"], rtol=1e-6)
    np.testing.assert_allclose(found["attention"]["last"][0], plain["attention"])
    np.testing.assert_allclose(
        found["attention"]["first"], plain["attention"][..., None, :] * [[0.5], [1.5]], rtol=1e-6
    )


@pytest.mark.parametrize("function", [search.greedy, search.beam])
def test_asking_for_attention_changes_nothing(model, function):
    asked, unasked = run(model, function, return_attention=True), run(model, function)
    assert "attention" not in unasked
    for name in ("tokens", "scores", "log_probabilities", "lengths"):
        np.testing.assert_array_equal(asked[name], unasked[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams of at least 1"),
        ({"n_best": 0}, "n_best of at least 1"),
        ({"min_length": 4}, "min_length from 0 to max_length=3"),
        ({"length_penalty": -1.0}, "length_penalty of at least 0"),
        ({"coverage_penalty": -1.0}, "coverage_penalty of at least 0"),
        ({"coverage_penalty": 1.0}, "source_mask"),
        ({"repetition_penalty": 0.9}, "repetition_penalty of at least 1"),
        ({"repetition_penalty": math.inf}, "finite repetition_penalty"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram to be a whole number of at least 0"),
        ({"no_repeat_ngram": 1.5}, "no_repeat_ngram to be a whole number of at least 0"),
        ({"groups": 0}, "groups of at least 1"),
        ({"groups": 3}, "groups to be a divisor of beams=4"),
        ({"groups": 2, "diversity_penalty": -0.1}, "diversity_penalty of at least 0"),
        ({"groups": 2, "diversity_penalty": math.inf}, "finite diversity_penalty"),
        ({"diversity_penalty": 0.5}, "groups of at least 2"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, **options)


def test_bad_max_length(model):
    with pytest.raises(ValueError, match="max_length of at least 1"):
        search.greedy(model.step, model.state(1), batch_size=3, max_length=0)
