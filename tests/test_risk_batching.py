import numpy as np
import pytest

from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer
from attention_zoo.training.batching import shifted
from attention_zoo.training.risk_batching import RiskBatches
from attention_zoo.training.text_data import ParallelText


@pytest.fixture(scope="module")
def words():
    return WhitespaceTokenizer([str(i) for i in range(100)])


def collected(batches):
    return [
        (*(inputs[name].numpy() for name in ("source", "target", "costs")), labels.numpy())
        for inputs, labels in batches.dataset()
    ]


def numbered(words, count, seed=0, **arguments):
    """Source i, its reference and its candidates begin with i; candidate k of it costs i + k / 10."""
    random = np.random.default_rng(seed)
    text = lambda i: " ".join([str(i)] + ["7"] * random.integers(0, 9))  # noqa: E731
    pairs = ParallelText([text(i) for i in range(count)], [text(i) for i in range(count)])
    candidates = [[text(i) for _ in range(random.integers(0, 4))] for i in range(count)]
    costs = np.arange(count)[:, None] + np.arange(3) / 10
    arguments = {"batch_tokens": 200, **arguments}
    return RiskBatches(pairs, candidates, costs, words, words, **arguments), candidates


def test_ids_by_hand(words):
    text = ParallelText(["0 1", "2"], ["5", "6 7"])
    batches = RiskBatches(
        text, [["5 5"], ["6", "7 6"]], [[0.5, 0], [0.2, 0.3]], words, words, batch_tokens=99
    )
    ((source, target, costs, labels),) = collected(batches)
    order = np.argsort(-source[:, 1])  # the first source has two words
    assert source[order].tolist() == [[4, 5, 2], [6, 2, 0]]
    assert labels[order].tolist() == [
        [[9, 2, 0], [9, 9, 2], [0, 0, 0]],
        [[10, 11, 2], [10, 2, 0], [11, 10, 2]],
    ]
    assert target[order].tolist() == [
        [[1, 9, 0], [1, 9, 9], [0, 0, 0]],
        [[1, 10, 11], [1, 10, 0], [1, 11, 10]],
    ]
    np.testing.assert_allclose(costs[order], [[0.5, 0], [0.2, 0.3]])
    assert batches.shapes == [(2, 3, 3, 3)] and batches.steps_per_epoch == 1


def test_every_source_comes_once_with_what_is_its_own(words):
    batches, candidates = numbered(words, 60)
    found, shapes = [], set()
    for source, target, costs, labels in collected(batches):
        assert labels.shape[0] * labels.shape[1] * labels.shape[2] <= 200
        shapes.add((*source.shape, *labels.shape[1:]))
        np.testing.assert_array_equal(target, shifted(labels))
        for row in np.flatnonzero(source.any(axis=1)):
            number = source[row, 0] - 4
            own = labels[row][labels[row].any(axis=1)]
            assert len(own) == 1 + len(candidates[number]) and (own[:, 0] - 4 == number).all()
            np.testing.assert_allclose(costs[row], number + np.arange(3) / 10)
            found.append(number)
    assert sorted(found) == list(range(60))
    assert shapes == set(batches.shapes) and len(shapes) > 1
    assert len(collected(batches)) == batches.steps_per_epoch


def test_rows_that_fill_up_are_empty(words):
    batches, _ = numbered(words, 61)
    empty = [
        (target, costs, labels, row)
        for source, target, costs, labels in collected(batches)
        for row in np.flatnonzero(~source.any(axis=1))
    ]
    assert (
        len(empty)
        == sum(rows * b.batches for (rows, *_), b in zip(batches.shapes, batches._buckets, strict=True)) - 61
    )
    assert all(not array[row].any() for *arrays, row in empty for array in arrays)


def test_epochs_differ_and_can_be_repeated(words):
    order = lambda batches: [source[:, 0].tolist() for source, *_ in collected(batches)]  # noqa: E731
    batches, _ = numbered(words, 60, seed=0)
    first, second = order(batches), order(batches)
    assert first != second
    batches.epoch.assign(1)
    assert order(batches) == second


def test_what_is_too_long_is_dropped(words, caplog):
    batches, _ = numbered(words, 60, max_target_length=6)
    assert 0 < batches.dropped < 60 and f"dropped {batches.dropped} of 60" in caplog.text
    assert batches.summary().startswith(
        f"{60 - batches.dropped} sources, each with a reference and 3 candidates"
    )
    with pytest.raises(ValueError, match=r"expected sources of at most 1 tokens .* received 60 that are all"):
        numbered(words, 60, max_source_length=1)


def test_what_does_not_fit_together(words):
    text = ParallelText(["1", "2"], ["1", "2"])
    with pytest.raises(
        ValueError, match=r"of 2 sources, received candidates of 1 and costs of shape \(1, 1\)"
    ):
        RiskBatches(text, [["1"]], [[0.0]], words, words, batch_tokens=9)
    with pytest.raises(
        ValueError, match="at most K = 1 candidates of a source, as there are costs, received 2"
    ):
        RiskBatches(text, [["1", "2"], []], [[0.0], [0.0]], words, words, batch_tokens=9)
