"""What may be said, against plain Python. (What it is worth is tested with the searches.)"""

import numpy as np
import pytest
from keras import ops

from attention_zoo.models import search_rules
from attention_zoo.models.tokenizer import END_ID, PAD_ID

DEFAULTS = {
    "limits": None, "min_length": 0, "forced_prefix": None, "length_penalty": 0.0, "coverage_penalty": 0.0,
    "source_mask": None, "alignment": None, "repetition_penalty": 1.0, "no_repeat_ngram": 0,
}  # fmt: skip


def make_rules(batch_size, max_length, **options):
    return search_rules.SearchRules(
        "test", batch_size=batch_size, max_length=max_length, **{**DEFAULTS, **options}
    )


def allowed(rules, said, vocabulary_size):
    """What may follow the tokens said, a list of lists of one length: lists of ids."""
    said = np.array(said, "int32").reshape(rules.batch_size, 1, -1)
    position = said.shape[-1]
    padded = np.pad(said, ((0, 0), (0, 0), (0, 12 - position)))
    totals, _ = rules.extend(
        ops.zeros((rules.batch_size, 1)), None, ops.array(padded),
        ops.zeros((rules.batch_size, 1, vocabulary_size)), ops.array(position, "int32"),
    )  # fmt: skip
    possible = ops.convert_to_numpy(totals)[:, 0] > search_rules.LOWEST
    return [list(np.flatnonzero(row)) for row in possible]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 3, 10])
def test_blocked_tokens_are_those_that_complete_a_repetition(n, length):
    vocabulary_size = 6  # of which three words, so that there are many repetitions
    said = np.random.default_rng(10 * n + length).integers(3, vocabulary_size, size=(40, length))
    found = allowed(make_rules(40, 11, no_repeat_ngram=n), said, vocabulary_size)
    for tokens, allowed_tokens in zip(said.tolist(), found, strict=True):
        grams = [tokens[i : i + n] for i in range(length - n + 1)]
        words = [word for word in (3, 4, 5) if [*tokens, word][-n:] not in grams]
        assert allowed_tokens == [END_ID, *words]


def test_blocking_gives_way_where_nothing_else_may_be_said():
    assert allowed(make_rules(1, 11, no_repeat_ngram=1, min_length=5), [3, 4], 5) == [[3, 4]]
    assert allowed(make_rules(1, 11, no_repeat_ngram=1), [3, 4], 5) == [[END_ID]]


def test_a_forced_prefix_and_a_limit_win_over_blocking():
    prefix = np.array([[3, 3, PAD_ID], [PAD_ID, PAD_ID, 3]], "int32")
    rules = make_rules(2, 11, no_repeat_ngram=1, forced_prefix=prefix)
    assert allowed(rules, [[3], [3]], 5) == [[3], [END_ID, 4]]
    assert allowed(rules, [[3, 3], [3, 4]], 5) == [[END_ID, 4], [3]]
    assert allowed(make_rules(1, 11, no_repeat_ngram=1, limits=[2]), [3, 4], 9) == [[END_ID]]


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (2, 3, 4), (2, 3, 0)])
def test_count_tokens(shape):
    ids = np.random.default_rng(0).integers(0, 7, size=shape).astype("int32")
    counts = ops.convert_to_numpy(search_rules.count_tokens(ops.array(ids), 7))
    np.testing.assert_array_equal(counts, (ids[..., None] == np.arange(7)).sum(-2))
