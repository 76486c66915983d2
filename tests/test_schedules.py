"""The schedules, against numbers worked out by hand."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.schedules import CooldownSchedule, InverseSquareRootSchedule


def test_values_by_hand():
    schedule = InverseSquareRootSchedule(peak_learning_rate=0.8, warmup_steps=4)
    # Keras's step 0 is the first: 1/4 of the peak; the peak at the fourth; half of it at the sixteenth.
    for step, rate in {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 15: 0.4, 63: 0.2}.items():
        np.testing.assert_allclose(float(schedule(step)), rate, rtol=1e-6)


def test_noam_is_the_papers_formula():
    schedule = InverseSquareRootSchedule.noam(model_dim=512, warmup_steps=4000, factor=2.0)
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        paper = 2.0 * 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        np.testing.assert_allclose(float(schedule(step - 1)), paper, rtol=1e-6)


def test_one_warmup_step_starts_at_the_peak():
    schedule = InverseSquareRootSchedule(0.5, warmup_steps=1)
    assert float(schedule(0)) == 0.5
    assert float(schedule(3)) == 0.25


def test_serialization():
    optimizer = keras.optimizers.SGD(InverseSquareRootSchedule(0.5, warmup_steps=3))
    config = keras.saving.serialize_keras_object(optimizer)
    restored = keras.saving.deserialize_keras_object(config)
    schedule = restored._learning_rate
    assert isinstance(schedule, InverseSquareRootSchedule)
    assert schedule.get_config() == {"peak_learning_rate": 0.5, "warmup_steps": 3}


def test_optimizer_steps_by_the_schedule():
    """With gradient 1, plain descent moves by exactly the rate."""
    variable = keras.Variable(0.0)
    optimizer = keras.optimizers.SGD(InverseSquareRootSchedule(0.8, warmup_steps=4))
    positions = []
    for _ in range(3):
        optimizer.apply_gradients([(keras.ops.ones(()), variable)])
        positions.append(float(variable))
    np.testing.assert_allclose(positions, [-0.2, -0.6, -1.2], rtol=1e-6)


@pytest.mark.parametrize("arguments", [(0.0, 10), (-1.0, 10), (0.1, 0)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="InverseSquareRootSchedule: expected"):
        InverseSquareRootSchedule(*arguments)


class TestCooldown:
    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            # The last step has a third of the rate; beyond it there is none, however far.
            (
                CooldownSchedule(0.6, cooldown_steps=3, total_steps=5),
                {0: 0.6, 1: 0.6, 2: 0.6, 3: 0.4, 4: 0.2, 5: 0.0, 6: 0.0, 10**6: 0.0},
            ),
            # The rate under it goes on falling: 0.4 at the last step, of which a quarter is left.
            (
                CooldownSchedule(InverseSquareRootSchedule(0.8, 4), cooldown_steps=4, total_steps=16),
                {0: 0.2, 3: 0.8, 12: 0.8 * (4 / 13) ** 0.5, 14: 0.4 * (4 / 15) ** 0.5, 15: 0.1, 16: 0, 63: 0},
            ),
            # From the first step on, while the rate under it still rises.
            (
                CooldownSchedule(InverseSquareRootSchedule(0.8, 4), cooldown_steps=4, total_steps=4),
                {0: 0.2, 1: 0.3, 2: 0.3, 3: 0.2, 4: 0.0},
            ),
            (CooldownSchedule(0.5, cooldown_steps=1, total_steps=2), {0: 0.5, 1: 0.5, 2: 0.0}),
        ],
        ids=["constant", "inverse_square_root", "from_the_start", "one_step"],
    )
    def test_values_by_hand(self, schedule, rates):
        for step, rate in rates.items():
            np.testing.assert_allclose(float(schedule(step)), rate, rtol=1e-6, err_msg=f"step {step}")

    def test_in_a_compiled_step(self):
        """Where the optimizer's counter is an int64 tensor."""
        schedule = CooldownSchedule(0.6, cooldown_steps=3, total_steps=5)
        rate = tf.function(schedule, input_signature=[tf.TensorSpec((), tf.int64)])(4)
        assert rate.dtype == tf.float32
        np.testing.assert_allclose(rate, 0.2, rtol=1e-6)

    @pytest.mark.parametrize("rate", [0.5, InverseSquareRootSchedule(0.5, warmup_steps=3)])
    def test_serialization(self, rate):
        schedule = CooldownSchedule(rate, cooldown_steps=2, total_steps=6)
        optimizer = keras.optimizers.SGD(schedule)
        # Through text, as in a .keras file.
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
        restored = keras.saving.deserialize_keras_object(config)._learning_rate
        assert isinstance(restored, CooldownSchedule)
        assert type(restored.learning_rate) is type(rate)
        assert restored.get_config() == schedule.get_config()
        for step in (0, 3, 5):
            assert float(restored(step)) == float(schedule(step)) > 0

    def test_optimizer_steps_by_the_schedule_and_then_stands_still(self):
        """With gradient 1, plain descent moves by exactly the rate."""
        variable = keras.Variable(0.0)
        optimizer = keras.optimizers.SGD(CooldownSchedule(0.5, cooldown_steps=2, total_steps=4))
        positions = []
        for _ in range(6):
            optimizer.apply_gradients([(keras.ops.ones(()), variable)])
            positions.append(float(variable))
        assert positions == [-0.5, -1.0, -1.5, -1.75, -1.75, -1.75]

    def test_adam_stands_still_at_the_end(self):
        """Although its moments do not."""
        variable = keras.Variable([1.0, -2.0])
        optimizer = keras.optimizers.Adam(CooldownSchedule(0.5, cooldown_steps=1, total_steps=2))
        positions = []
        for _ in range(4):
            optimizer.apply_gradients([(variable.value, variable)])
            positions.append(variable.numpy())
        assert np.all(positions[0] != positions[1])
        np.testing.assert_array_equal(positions[2:], [positions[1]] * 2)

    @pytest.mark.parametrize("arguments", [(0.0, 1, 2), (-0.1, 1, 2), (0.1, 0, 2), (0.1, -1, 2), (0.1, 3, 2)])
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError, match="CooldownSchedule: expected"):
            CooldownSchedule(*arguments)
