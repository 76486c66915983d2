"""The inverse-square-root schedule, against numbers worked out by hand."""

import keras
import numpy as np
import pytest

from attention_zoo.schedules import InverseSquareRootSchedule


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
