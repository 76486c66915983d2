import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.layers import Dropout
from attention_zoo.ops import attend_in_chunks
from attention_zoo.ops.seeds import entries_before, next_seed, part_of_batch, replica_seed
from attention_zoo.training import strategies


def in_halves(compute, generator, *tensors):
    """Both halves' results joined; the generator is as before."""
    state = generator.state.numpy()
    pieces = []
    for number in range(2):
        with part_of_batch(number, np.array([state], "uint32"), [generator]):
            pieces.append(np.array(compute(*[np.split(x, 2)[number] for x in tensors])))
    np.testing.assert_array_equal(generator.state, state)
    return np.concatenate(pieces)


@pytest.mark.parametrize("noise_shape", [None, (None, 1, None), (1, None, None)])
def test_halves_drop_what_the_whole_does(noise_shape):
    layer = Dropout(0.5, noise_shape=noise_shape, seed=3)
    layer.draw_seed()  # so that it is not the first call
    x = np.ones((4, 3, 5), "float32")
    halves = in_halves(lambda x: layer(x, training=True), layer.seed_generator, x)
    np.testing.assert_array_equal(halves, layer(x, training=True))
    assert (noise_shape == (1, None, None)) == np.array_equal(*np.split(halves, 2))


def test_halves_drop_what_the_whole_does_in_chunks():
    layer = Dropout(0.5, seed=3)

    def attend(query, key, value):
        return attend_in_chunks(query, key, value, dropout=0.5, seed=layer.draw_seed(), chunk_size=2)

    arrays = [np.random.default_rng(i).normal(size=(4, 2, 5, 3)).astype("float32") for i in range(3)]
    halves = in_halves(attend, layer.seed_generator, *arrays)
    np.testing.assert_allclose(halves, attend(*arrays), atol=1e-6)


def test_parts_count_what_is_drawn():
    one, other, third = (keras.random.SeedGenerator(seed) for seed in range(3))
    with part_of_batch(2, np.array([[0, 8], [1, 9]], "uint32"), [one, other]) as drawn:
        seeds = [np.array(next_seed(generator)).tolist() for generator in (other, one, other, third)]
        assert int(entries_before(10)) == 20
    assert seeds == [[1, 9], [0, 8], [1, 10], [2, 0]]
    assert drawn == [1, 2]
    assert [int(generator.state[1]) for generator in (one, other, third)] == [0, 0, 1]
    assert entries_before(10) == 0
    assert np.array(next_seed(one)).tolist() == [0, 0]


def test_seed_is_kept_where_there_are_no_replicas():
    seed = tf.constant([3, 4])
    assert replica_seed(seed) is seed
    with strategies.strategy("one_device").scope():
        assert replica_seed(seed) is seed
    with strategies.strategy("mirrored").scope():  # made here, but run on no replica
        assert replica_seed(seed) is seed


def test_first_replica_keeps_the_seed_and_the_second_has_its_own():
    mirrored = strategies.strategy("mirrored")
    seed = tf.constant([3, 4])
    seeds = tf.function(lambda: mirrored.experimental_local_results(mirrored.run(replica_seed, (seed,))))()
    first, second = (seed.numpy().tolist() for seed in seeds)
    assert first == [3, 4]
    assert second[1] == 4
    assert second[0] > 2**20  # no number of a layer
