import io
import re

import keras
import numpy as np
import pytest
from rich.console import Console

from attention_zoo.training.callbacks import Progress


class CountingModel(keras.Model):
    """Every step holds ten tokens and a loss of one, like the library's models: the loss is weighted."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        self._loss_tracker.update_state(1.0, sample_weight=10.0)
        return {"loss": self._loss_tracker.result(), "token_accuracy": 0.5}

    test_step = train_step


def fit(console, epochs=2, validation=True, fail_at=None):
    model = CountingModel()
    model.compile(optimizer="sgd", loss="mse")
    data = (np.zeros([8, 1], "float32"), np.zeros([8, 1], "float32"))
    progress = Progress(console=console)
    extra = []
    if fail_at is not None:

        def fail(batch, logs):
            if batch == fail_at:
                raise KeyboardInterrupt

        extra = [keras.callbacks.LambdaCallback(on_train_batch_end=fail)]
    try:
        model.fit(
            *data,
            batch_size=2,
            epochs=epochs,
            validation_data=data if validation else None,
            callbacks=[progress, *extra],
            verbose=0,
        )
    finally:
        progress.close()
    return progress


@pytest.fixture
def lines():
    """What a log file gets."""
    file = io.StringIO()
    fit(Console(file=file, width=40))
    return file.getvalue()


def test_log_has_one_plain_line_per_epoch(lines):
    first, *epochs = lines.splitlines()
    assert "compiling" in first
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert "\x1b" not in lines and "\r" not in lines


def test_line_tells_what_matters(lines):
    line = lines.splitlines()[-1]
    assert "loss 1.000," in line and "token accuracy 0.500," in line
    assert "validation loss 1.000," in line
    assert re.search(r"[\d,]+ tokens/s", line)
    assert line.endswith("0:00 left")


def test_tokens_per_second_are_real_tokens():
    file = io.StringIO()
    progress = fit(Console(file=file), epochs=1, validation=False)
    seconds = progress._step_end - progress._epoch_start
    told = float(re.search(r"([\d,]+) tokens/s", file.getvalue()).group(1).replace(",", ""))
    assert told == pytest.approx(4 * 10 / seconds, rel=0.01, abs=1)


def test_time_left_counts_all_epochs():
    progress = Progress()
    progress.params = {"epochs": 4}
    progress.steps_per_epoch, progress._epoch, progress._step = 10, 1, 4
    progress._recent, progress._pause = [(2.0, 5.0), (4.0, 5.0)], 7.0
    # 6 steps of this epoch and 20 of the other two, 3 seconds each; two pauses of 7 seconds.
    assert progress._seconds_left() == 26 * 3 + 2 * 7


def test_terminal_gets_a_bar():
    file = io.StringIO()
    fit(Console(file=file, force_terminal=True, width=160))
    text = file.getvalue()
    assert "\x1b" in text
    assert "4/4" in text
    assert "epoch 2/2" in text


def test_interruption_gives_the_terminal_back():
    file = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        fit(Console(file=file, force_terminal=True), fail_at=1)
    hidden, shown = "\x1b[?25l", "\x1b[?25h"  # the cursor
    assert file.getvalue().rfind(shown) > file.getvalue().rfind(hidden)
