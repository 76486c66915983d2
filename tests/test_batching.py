import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.models.sentencepiece_tokenizer import SentencePieceTokenizer
from attention_zoo.models.whitespace_tokenizer import WhitespaceTokenizer
from attention_zoo.training.batching import TranslationBatches
from attention_zoo.training.text_data import ParallelText


@pytest.fixture(scope="module")
def words():
    return WhitespaceTokenizer([str(i) for i in range(400)])


def numbered_text(pairs, seed=0):
    """Pair i has i as the first word on both sides, and between 1 and 20 words."""
    random = np.random.default_rng(seed)
    sources = [" ".join([str(i)] + ["7"] * random.integers(0, 20)) for i in range(pairs)]
    targets = [" ".join([str(i)] + ["9"] * random.integers(0, 20)) for i in range(pairs)]
    return ParallelText(sources, targets)


def collected(batches):
    return [
        (inputs["source"].numpy(), inputs["target"].numpy(), labels.numpy())
        for inputs, labels in batches.dataset()
    ]


def order(batches):
    """First source id of every row, batch by batch."""
    return [source[:, 0].tolist() for source, _, _ in collected(batches)]


def test_ids_by_hand(words):
    text = ParallelText(["0 1 2", "3"], ["5", "6 7"])
    batches = TranslationBatches(text, words, words, batch_tokens=8, shuffle=False)
    ((source, target, labels),) = collected(batches)
    assert source.tolist() == [[4, 5, 6, 2], [7, 2, 0, 0]]
    assert target.tolist() == [[1, 9, 0], [1, 10, 11]]
    assert labels.tolist() == [[9, 2, 0], [10, 11, 2]]
    assert {array.dtype for array in (source, target, labels)} == {np.dtype("int32")}
    assert batches.padding_share == pytest.approx(3 / 14)
    assert batches.shapes == [(2, 4, 3)]


def test_an_epoch_has_every_pair_once_in_the_announced_shapes(words):
    text = numbered_text(300)
    batches = TranslationBatches(text, words, words, batch_tokens=64)
    assert len(batches.shapes) > 1
    found, positions, tokens = [], 0, 0
    arrays = collected(batches)
    assert len(arrays) == batches.steps_per_epoch == batches.dataset().cardinality()
    for source, target, labels in arrays:
        assert (len(source), source.shape[1], target.shape[1]) in batches.shapes
        assert target.shape == labels.shape
        assert max(source.size, target.size) <= 64
        positions += source.size + labels.size
        tokens += np.count_nonzero(source) + np.count_nonzero(labels)
        for row in range(len(source)):
            if not labels[row].any():  # fills up the batch
                assert not source[row].any() and not target[row].any()
                continue
            number = labels[row, 0] - 4
            found.append(number)
            assert words.detokenize(source[row : row + 1]).numpy()[0].decode() == text[number][0]
            assert words.detokenize(labels[row : row + 1]).numpy()[0].decode() == text[number][1]
            length = np.count_nonzero(labels[row])
            assert target[row].tolist() == [1, *labels[row, : length - 1]] + [0] * (labels.shape[1] - length)
    assert sorted(found) == list(range(300))
    assert batches.padding_share == pytest.approx(1 - tokens / positions)


def test_few_rows_fill_up_batches(words):
    text = ParallelText(["0 1"] * 9, ["2 3"] * 9)
    batches = TranslationBatches(text, words, words, batch_tokens=8 * 3, buckets=[(3, 3)])
    assert batches.shapes == [(5, 3, 3)]  # 5 + 4, not 8 + 1
    assert sum(not row.any() for source, _, _ in collected(batches) for row in source) == 1


def test_a_pair_longer_than_a_batch_is_a_batch_of_its_own(words):
    text = ParallelText(["0 " * 9, "1 " * 9], ["2", "3"])
    batches = TranslationBatches(text, words, words, batch_tokens=4)
    assert batches.shapes == [(1, 10, 2)]
    assert batches.steps_per_epoch == 2


def test_order_depends_on_seed_and_epoch_alone(words):
    text = numbered_text(100)
    first = TranslationBatches(text, words, words, batch_tokens=64, seed=3)
    epochs = [order(first) for _ in range(3)]
    assert first.epoch.numpy() == 3
    assert epochs[0] != epochs[1] != epochs[2]
    # Other pairs share a batch, it is not only the order of the batches that changes.
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}

    resumed = TranslationBatches(text, words, words, batch_tokens=64, seed=3)
    resumed.epoch.assign(2)
    assert order(resumed) == epochs[2]
    resumed.epoch.assign(0)
    assert order(resumed) == epochs[0]
    other = TranslationBatches(text, words, words, batch_tokens=64, seed=4)
    assert order(other) != epochs[0]


def test_batches_of_the_buckets_are_mixed(words):
    batches = TranslationBatches(numbered_text(300), words, words, batch_tokens=64, seed=1)
    shapes = [source.shape for source, _, _ in collected(batches)]
    assert shapes != sorted(shapes) and shapes != sorted(shapes, reverse=True)


def test_without_shuffling_the_order_never_changes(words):
    batches = TranslationBatches(numbered_text(50), words, words, batch_tokens=64, shuffle=False)
    first = order(batches)
    assert order(batches) == first
    assert batches.steps_per_epoch > 1


def test_fit_sees_the_epoch_that_a_callback_sets(words):
    """Whatever `fit` looks at before its first epoch, epoch n of a resumed training is epoch n."""
    text = numbered_text(60)

    class SetEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            batches.epoch.assign(epoch)

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.seen = []
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, inputs):
            return tf.cast(inputs["target"], "float32") * self.scale

        def train_step(self, data):
            inputs, _ = data
            self.seen.append(inputs["source"].numpy()[:, 0].tolist())
            return {"loss": tf.constant(0.0)}

    def seen(initial_epoch, epochs):
        model = Recorder()
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(
            batches.dataset(),
            validation_data=validation.dataset(),
            epochs=epochs,
            initial_epoch=initial_epoch,
            verbose=0,
            callbacks=[SetEpoch()],
        )
        return model.seen

    batches = TranslationBatches(text, words, words, batch_tokens=64, seed=2)
    validation = TranslationBatches(text, words, words, batch_tokens=64, shuffle=False)
    whole = seen(0, 3)
    steps = batches.steps_per_epoch
    assert len(whole) == 3 * steps
    expected = TranslationBatches(text, words, words, batch_tokens=64, seed=2)
    assert whole == order(expected) + order(expected) + order(expected)
    assert seen(2, 3) == whole[2 * steps :]


def test_given_buckets_and_what_fits_none(words, caplog):
    text = ParallelText(["0", "1 1 1", "2 2 2 2", "3"], ["0 0 0", "1", "2", "3 3 3 3 3 3"])
    batches = TranslationBatches(text, words, words, batch_tokens=100, buckets=[(8, 4), (4, 4), (2, 2)])
    assert batches.buckets == [(4, 4), (8, 4)]  # from small to large, without the empty one
    assert batches.dropped == 1
    assert "dropped 1 of 4 pairs" in caplog.text
    assert {frozenset(np.ravel(ids)) for ids in order(batches)} == {frozenset({4, 5}), frozenset({6})}


def test_longer_pairs_are_dropped_and_counted(words):
    text = ParallelText(["0", "1 1 1", "2"], ["0", "1", "2 2 2 2"])
    batches = TranslationBatches(
        text, words, words, batch_tokens=100, max_source_length=3, max_target_length=4
    )
    assert batches.dropped == 2
    assert order(batches) == [[4]]
    # The END counts.
    batches = TranslationBatches(
        text, words, words, batch_tokens=100, max_source_length=4, max_target_length=5
    )
    assert batches.dropped == 0


def test_automatic_buckets_are_few_and_worth_their_compilation(words):
    def buckets(pairs, batch_tokens, lengths, **options):
        sides = [" ".join(["5"] * length) for length in np.resize(lengths, pairs)]
        text = ParallelText(sides, sides)
        return TranslationBatches(text, words, words, batch_tokens=batch_tokens, **options).buckets

    assert buckets(400, 40, [4]) == [(5, 5)]
    many = buckets(400, 40, np.arange(1, 40))
    assert 2 <= len(many) <= 5
    assert many == sorted(many) and many[-1] == (40, 40)
    assert len(buckets(400, 40, np.arange(1, 40), max_buckets=3)) == 3
    assert len(buckets(400, 4000, np.arange(1, 40))) == 1  # too few batches to save anything


@pytest.fixture(scope="module")
def text():
    """Sources and targets of several words."""
    random = np.random.default_rng(0)
    words = ["translation", "transformer", "attention", "position", "station"]
    sides = [
        [" ".join(random.choice(words, size=random.integers(1, 9))) for _ in range(60)] for _ in range(2)
    ]
    return ParallelText(*sides)


@pytest.fixture(scope="module")
def merges(text):
    return SentencePieceTokenizer.train([*text.sources, *text.targets], 60, model_type="bpe")


class TestSubwordDropout:
    def texts(self, batches, tokenizer):
        """The pairs of an epoch as text, sorted, and its number of tokens."""
        pairs, tokens = [], 0
        for source, _, labels in collected(batches):
            sides = [tokenizer.detokenize(ids).numpy().tolist() for ids in (source, labels)]
            pairs += zip(*sides, strict=True)
            tokens += np.count_nonzero(source) + np.count_nonzero(labels)
        return sorted(pair for pair in pairs if pair != (b"", b"")), tokens

    def test_every_epoch_has_the_same_texts_in_other_tokens(self, text, merges):
        expected = sorted((s.encode(), t.encode()) for s, t in zip(text.sources, text.targets, strict=True))
        plain = TranslationBatches(text, merges, merges, batch_tokens=256)
        batches = TranslationBatches(text, merges, merges, batch_tokens=256, subword_dropout=0.2)
        fewest = self.texts(plain, merges)[1]
        for _ in range(5):
            pairs, tokens = self.texts(batches, merges)
            assert pairs == expected
            assert tokens > 1.2 * fewest

    def test_shapes_and_steps_stay(self, text, merges):
        batches = TranslationBatches(text, merges, merges, batch_tokens=256, subword_dropout=0.5)
        for _ in range(4):
            shapes = {(*source.shape, target.shape[1]) for source, target, _ in collected(batches)}
            assert shapes == set(batches.shapes)
            assert len(list(batches.dataset())) == batches.steps_per_epoch

    def test_the_target_is_the_labels_one_later(self, text, merges):
        batches = TranslationBatches(text, merges, merges, batch_tokens=256, subword_dropout=0.5)
        for source, target, labels in collected(batches):
            real = source[:, 0] != 0
            np.testing.assert_array_equal(target[real, 0], 1)
            np.testing.assert_array_equal(target[:, 1:], np.where(labels[:, :-1] == 2, 0, labels[:, :-1]))

    def test_an_epoch_can_be_seen_again(self, text, merges):
        """Also in another object, which has drawn other epochs before: a resumed training needs that."""
        first, second = (
            TranslationBatches(text, merges, merges, batch_tokens=256, subword_dropout=0.2) for _ in range(2)
        )
        epochs = [collected(first) for _ in range(4)]
        second.epoch.assign(3)
        for one, other in zip(epochs[3], collected(second), strict=True):
            np.testing.assert_equal(one, other)
        assert any(
            one[0].shape != other[0].shape or (one[0] != other[0]).any()
            for one, other in zip(epochs[2], epochs[3], strict=True)
        )

    def test_what_becomes_too_long_stays_as_it_is(self, text, merges):
        length = int(merges.tokenize(text.sources + text.targets).row_lengths().numpy().max()) + 1
        batches = TranslationBatches(
            text, merges, merges, batch_tokens=256, buckets=[(length, length)], subword_dropout=0.9
        )
        assert batches.dropped == 0
        longest = max(text.sources, key=lambda source: len(merges.tokenize([source]).values))
        plain = merges.tokenize([longest]).values.numpy().tolist()
        rows = [row.tolist() for source, _, _ in collected(batches) for row in source]
        assert [*plain, 2] in [row[: len(plain) + 1] for row in rows]

    def test_errors(self, text, merges, words):
        with pytest.raises(ValueError, match=r"subword_dropout from 0 to below 1, received 1\.5"):
            TranslationBatches(text, merges, merges, batch_tokens=8, subword_dropout=1.5)
        with pytest.raises(ValueError, match=r"SentencePieceTokenizers .* received a WhitespaceTokenizer"):
            TranslationBatches(text, merges, words, batch_tokens=8, subword_dropout=0.1)


def test_summary_is_one_line_with_the_shapes(words):
    text = ParallelText(["0 1 2", "3", "4 4 4 4 4"], ["5", "6 7", "8"])
    batches = TranslationBatches(text, words, words, batch_tokens=8, shuffle=False, max_source_length=5)
    assert batches.summary() == "2 pairs in 1 batches of 2x(4, 3); 21% padding; 1 pairs dropped as too long"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_tokens": 0}, "expected batch_tokens of at least 1, received 0"),
        ({"batch_tokens": 8, "seed": -1}, "expected a seed of at least 0, received -1"),
        ({"batch_tokens": 8, "buckets": []}, "expected at least one bucket"),
        ({"batch_tokens": 8, "buckets": [(3,)]}, r"expected buckets \(source length, target length\)"),
        ({"batch_tokens": 8, "max_target_length": 2}, "received 1 pairs that are all longer"),
        ({"batch_tokens": 8, "buckets": [(2, 2)]}, "received 1 pairs that are all longer"),
    ],
)
def test_errors(words, arguments, message):
    with pytest.raises(ValueError, match=message):
        TranslationBatches(ParallelText(["0 1"], ["2 3"]), words, words, **arguments)
