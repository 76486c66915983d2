"""Diverse beam search against lists in plain Python, on the toy model of the other searches."""

import numpy as np
import pytest
from test_search import (
    PREFIX,
    SOURCE_MASK,
    Reference,
    ToyModel,
    check,
    compiled,
    eager_to_end,
    hypotheses,
    run,
)

from attention_zoo.models.tokenizer import END_ID


@pytest.fixture(scope="module")
def model():
    return ToyModel(seed=7)


def diverse_beam(reference, sentence, beams, groups, penalty, n_best):
    """Groups that choose in turn, and a round of all groups for each place."""
    live, finished = [[()] for _ in range(groups)], [[] for _ in range(groups)]
    while any(live):
        chosen = []  # at this position, by the groups so far
        for group in range(groups):
            extended = [(*y, token) for y in live[group] for token in reference.allowed(sentence, y)]
            finished[group] += [y for y in extended if y[-1] == END_ID]
            going_on = [y for y in extended if y[-1] != END_ID]
            going_on.sort(key=lambda y: penalty * chosen.count(y[-1]) - reference.worth(sentence, y))
            live[group] = going_on[: beams // groups]
            chosen = chosen + [y[-1] for y in live[group]]
    returned = []
    for group in finished:
        group.sort(key=lambda y: -reference.score(sentence, y))
    for rank in range(n_best):
        one_of_each = [group[rank] for group in finished if rank < len(group)]
        for hypothesis in sorted(one_of_each, key=lambda y: -reference.score(sentence, y)):
            if hypothesis not in returned:
                returned.append(hypothesis)
    return sorted(returned[:n_best], key=lambda y: -reference.score(sentence, y))


SETTINGS = {
    "plain": {},
    "penalties": {"coverage_penalty": 0.3, "length_penalty": 1.0, "source_mask": SOURCE_MASK},
    "limits_and_prefix": {"limits": np.array([3, 0, 1], "int32"), "forced_prefix": PREFIX},
    "repetition": {"repetition_penalty": 1.6, "no_repeat_ngram": 2, "min_length": 2},
}


@pytest.mark.parametrize(
    ("beams", "groups", "penalty", "n_best"),
    [(4, 2, 0.8, 2), (4, 4, 0.5, 4), (6, 3, 5.0, 1), (6, 2, 0.3, 5), (4, 2, 0.0, 3)],
)
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_groups_equal_reference(model, options, beams, groups, penalty, n_best):
    reference = Reference(model, **options)
    found = run(
        model, beams=beams, groups=groups, diversity_penalty=penalty, n_best=n_best, return_attention=True,
        **options,
    )  # fmt: skip
    for sentence in range(model.batch):
        expected = diverse_beam(reference, sentence, beams, groups, penalty, n_best)
        check(found, expected, reference, sentence)
        assert (found["lengths"][sentence, len(expected) :] == 0).all()
        assert (found["scores"][sentence, len(expected) :] == np.finfo("float32").min).all()


def test_groups_without_penalty_find_what_one_of_them_finds(model):
    """They all choose the same: every text is returned once, and no place stays empty."""
    alone = run(model, beams=2, n_best=3)
    together = run(model, beams=6, groups=3, n_best=3)
    for name, value in alone.items():
        np.testing.assert_array_equal(together[name], value, err_msg=name)


def test_groups_say_different_words(model):
    """With a price above all else, no group begins as another did; three plain beams do."""
    found = run(model, beams=3, groups=3, diversity_penalty=50.0, n_best=3, min_length=1)
    plain = run(model, beams=3, n_best=3, min_length=1)
    first_words = [{y[0] for y in hypotheses(found, sentence)} for sentence in range(3)]
    assert first_words == [{3, 4, 5}] * 3
    assert any(len({y[0] for y in hypotheses(plain, sentence)}) < 3 for sentence in range(3))


def test_the_first_group_searches_as_if_alone(model):
    """And however high the price of diversity, it is in no score."""
    alone = run(model, beams=2, n_best=1)
    found = run(model, beams=4, groups=2, diversity_penalty=1e6, n_best=4)
    assert (found["scores"][:, 0] >= alone["scores"][:, 0] - 1e-6).all()
    assert (found["scores"] > -100).all()


def test_result_does_not_depend_on_the_batch(model):
    options = {"beams": 4, "groups": 2, "diversity_penalty": 0.8, "n_best": 3, "return_attention": True}
    together = run(model, **options)
    for sentence in range(model.batch):
        alone = run(model.select([sentence]), **options)
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], together[name][sentence], err_msg=name)


def test_early_exit(model):
    certain = eager_to_end(model, 30.0)
    certain.steps.assign(0)
    run(certain, beams=4, groups=2, diversity_penalty=0.8)
    assert certain.steps.numpy() == 1


def test_compiled_groups_equal_eager(model):
    options = {
        "beams": 4, "groups": 2, "diversity_penalty": 0.8, "n_best": 3, "return_attention": True,
        "repetition_penalty": 1.6, "no_repeat_ngram": 2,
    }  # fmt: skip
    eager, xla = run(model, **options), compiled(model, **options)
    for name, value in eager.items():
        np.testing.assert_allclose(xla[name], value, rtol=1e-5, err_msg=name)
