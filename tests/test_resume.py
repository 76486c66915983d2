import logging
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.training.callbacks.checkpoint_averaging import CheckpointAveraging
from attention_zoo.training.callbacks.resume import Resume

EPOCHS, STEPS = 5, 4


class Batches:
    """Stands in for `TranslationBatches`: the order of the data depends on the epoch."""

    def __init__(self):
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def dataset(self):
        order = tf.data.Dataset.range(STEPS).map(lambda i: (i * 3 + self.epoch * 7) % 5)
        return order.map(
            lambda i: (tf.random.stateless_normal([8, 3], [i, 0]), tf.random.stateless_normal([8, 1], [i, 1]))
        )


class KillItself(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_model(seed=1, units=4, dtype="float32"):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input([3]),
            keras.layers.Dense(units, dtype=dtype),
            keras.layers.Dropout(0.5, dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def train(folder, *callbacks, model=None, epochs=EPOCHS, resume_options=None):
    """Returns the model and the epochs that were trained."""
    model, batches = model or make_model(), Batches()
    resume = Resume(folder / "backup", batches, **(resume_options or {}))
    averaging = CheckpointAveraging(last=4, folder=folder / "checkpoints")
    history = model.fit(
        batches.dataset(), epochs=epochs, verbose=0, shuffle=False, callbacks=[*callbacks, averaging, resume]
    )
    return model, history.epoch


def assert_same_state(model, other):
    mine, others = (each.variables + each.optimizer.variables for each in (model, other))
    for variable, value in zip(mine, others, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value.numpy(), err_msg=variable.path)


def backups(folder):
    return sorted(path.name for path in (folder / "backup").iterdir())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    model, epochs = train(tmp_path_factory.mktemp("uninterrupted"))
    assert epochs == list(range(EPOCHS))
    return model


class TestExactResume:
    def test_killed_and_resumed_equals_uninterrupted(self, tmp_path, uninterrupted):
        root = pathlib.Path(__file__).parent
        script = (
            f"import pathlib, sys; sys.path[:0] = [{str(root.parent)!r}, {str(root)!r}]; "
            f"import test_resume as t; "
            f"t.train(pathlib.Path({str(tmp_path)!r}), t.KillItself(3 * t.STEPS + 2))"
        )
        killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        # Another seed: everything comes from the backup.
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [3, 4]
        assert_same_state(model, uninterrupted)

    def test_the_parts_matter(self, tmp_path, uninterrupted):
        """Without the dropout generators' states, say, the test above would fail."""
        first, second = make_model(), make_model(seed=2)
        second.set_weights(first.get_weights())
        model, _ = train(tmp_path, model=second)
        assert not np.array_equal(model.get_weights()[0], uninterrupted.get_weights()[0])

    def test_keyboard_interrupt_in_the_same_process(self, tmp_path, uninterrupted):
        class Interrupt(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if int(self.model.optimizer.iterations) == 2 * STEPS + 1:
                    raise KeyboardInterrupt

        model = make_model()
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, Interrupt(), model=model)
        model, epochs = train(tmp_path, model=model)
        assert epochs == [2, 3, 4]
        assert_same_state(model, uninterrupted)

    def test_low_precision_variables(self, tmp_path):
        def run(seed):
            stopping = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
            model = make_model(seed, dtype="bfloat16")
            _, epochs = train(
                tmp_path, stopping, model=model, epochs=2, resume_options={"callbacks": [stopping]}
            )
            return model, epochs, stopping.best_weights

        model, _, best_weights = run(1)
        resumed, epochs, restored_weights = run(2)
        assert epochs == []
        assert_same_state(resumed, model)
        for weight, restored in zip(best_weights, restored_weights, strict=True):
            np.testing.assert_array_equal(weight, restored)

    def test_sets_the_order_of_the_data_in_every_epoch(self, tmp_path):
        batches, seen = Batches(), []
        look = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: seen.append(int(batches.epoch))
        )
        model = make_model()
        model.fit(batches.dataset(), epochs=2, verbose=0, callbacks=[look, Resume(tmp_path, batches)])
        model.fit(batches.dataset(), epochs=3, verbose=0, callbacks=[look, Resume(tmp_path, batches)])
        assert seen == [0] * STEPS + [1] * STEPS + [2] * STEPS


class TestComplete:
    def test_a_complete_training_is_not_repeated(self, tmp_path, uninterrupted, caplog):
        train(tmp_path)
        caplog.clear()
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == []
        assert_same_state(model, uninterrupted)
        assert "complete after 5 epochs" in caplog.text

    def test_more_epochs_go_on(self, tmp_path, uninterrupted):
        train(tmp_path, epochs=2)
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [2, 3, 4]
        assert_same_state(model, uninterrupted)

    @pytest.mark.parametrize("epochs", [2, 4])
    def test_the_next_fit_of_the_model_starts_at_0(self, tmp_path, epochs):
        train(tmp_path, epochs=2)
        model, _ = train(tmp_path, epochs=epochs)
        history = model.fit(Batches().dataset(), epochs=1, verbose=0)
        assert history.epoch == [0]


class TestOtherCallbacks:
    def stopping(self):
        # The loss never improves by 100, so the patience of 3 runs out after epoch 3.
        return keras.callbacks.EarlyStopping(
            "loss", mode="min", min_delta=100, patience=3, restore_best_weights=True
        )

    def test_early_stopping_goes_on(self, tmp_path):
        whole, parts = self.stopping(), self.stopping()
        expected, epochs = train(tmp_path / "whole", whole, resume_options={"callbacks": [whole]}, epochs=9)
        assert epochs == [0, 1, 2, 3]
        train(tmp_path / "parts", parts, resume_options={"callbacks": [parts]}, epochs=3)
        parts = self.stopping()
        model, epochs = train(
            tmp_path / "parts", parts, model=make_model(2), resume_options={"callbacks": [parts]}, epochs=9
        )
        assert epochs == [3]
        assert (parts.best, parts.best_epoch, parts.wait) == (whole.best, whole.best_epoch, whole.wait)
        for weight, value in zip(parts.best_weights, whole.best_weights, strict=True):
            np.testing.assert_array_equal(weight, value)
        assert_same_state(model, expected)

    def test_a_stopped_training_stays_stopped(self, tmp_path):
        stopping = self.stopping()
        train(tmp_path, stopping, resume_options={"callbacks": [stopping]}, epochs=9)
        stopping = self.stopping()
        _, epochs = train(tmp_path, stopping, resume_options={"callbacks": [stopping]}, epochs=9)
        assert epochs == []

    def test_plateaus_and_best_checkpoints_go_on(self, tmp_path):
        def run(folder, seed, epochs):
            plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=2, cooldown=3, min_delta=100)
            checkpoint = keras.callbacks.ModelCheckpoint(
                str(folder / "best.weights.h5"), "loss", save_best_only=True, save_weights_only=True
            )
            callbacks = [plateau, checkpoint]
            model, _ = train(
                folder,
                *callbacks,
                model=make_model(seed),
                epochs=epochs,
                resume_options={"callbacks": callbacks},
            )
            return model, [plateau.best, plateau.wait, plateau.cooldown_counter, checkpoint.best]

        (tmp_path / "whole").mkdir()
        (tmp_path / "parts").mkdir()
        expected, expected_counters = run(tmp_path / "whole", 1, 7)
        run(tmp_path / "parts", 1, 4)
        model, counters = run(tmp_path / "parts", 2, 7)
        assert counters == expected_counters
        assert_same_state(model, expected)

    def test_settings_are_not_overwritten(self, tmp_path):
        stopping = self.stopping()
        train(tmp_path, stopping, resume_options={"callbacks": [stopping]}, epochs=1)
        stopping = self.stopping()
        stopping.patience = 7
        train(tmp_path, stopping, resume_options={"callbacks": [stopping]}, epochs=2)
        assert stopping.patience == 7
        assert stopping.wait == 1


class TestDamage:
    def test_two_backups_are_kept_and_no_half_ones(self, tmp_path):
        train(tmp_path)
        assert backups(tmp_path) == ["epoch-000004.npz", "epoch-000005.npz"]

    @pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
    def test_a_damaged_backup_gives_way_to_the_one_before(self, damage, tmp_path, uninterrupted, caplog):
        train(tmp_path, epochs=3)
        newest = tmp_path / "backup" / "epoch-000003.npz"
        content = newest.read_bytes()
        # In the middle of an array of 4 x 3 floats, 128 bytes after its header began.
        middle = content.index(b"NUMPY") + 140
        newest.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "empty": b"",
                "garbage": b"garbage" * 100,
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            }[damage]
        )
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [2, 3, 4]
        assert "epoch-000003.npz is damaged" in caplog.text
        assert_same_state(model, uninterrupted)

    def test_a_half_written_backup_is_not_looked_at(self, tmp_path, uninterrupted):
        train(tmp_path, epochs=3)
        (tmp_path / "backup" / "epoch-000004.partial").write_bytes(b"half")
        model, epochs = train(tmp_path)
        assert epochs == [3, 4]
        assert_same_state(model, uninterrupted)
        assert backups(tmp_path) == ["epoch-000004.npz", "epoch-000005.npz"]

    def test_only_damaged_backups(self, tmp_path):
        train(tmp_path, epochs=2)
        for path in (tmp_path / "backup").iterdir():
            path.write_bytes(b"")
        with pytest.raises(ValueError, match="2 damaged; delete the folder to start over"):
            train(tmp_path)

    def test_backup_of_another_model(self, tmp_path):
        train(tmp_path, epochs=1)
        with pytest.raises(ValueError, match="expected a backup of this model"):
            train(tmp_path, model=make_model(units=5))

    def test_model_without_weights(self, tmp_path):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("adam", "mse")
        with pytest.raises(ValueError, match="not built; call it on a batch before fit"):
            train(tmp_path, model=model)

    def test_backup_of_another_precision(self, tmp_path):
        train(tmp_path, epochs=1)
        with pytest.raises(ValueError, match="expected a backup of this model"):
            train(tmp_path, model=make_model(dtype="bfloat16"))

    def test_other_callbacks_than_in_the_backup(self, tmp_path):
        train(tmp_path, epochs=1)
        with pytest.raises(ValueError, match=r"expected the 0 callbacks .*received 1"):
            train(tmp_path, resume_options={"callbacks": [keras.callbacks.Callback()]})

    def test_says_that_it_goes_on(self, tmp_path, caplog):
        train(tmp_path, epochs=1)
        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            train(tmp_path, epochs=2)
        assert "going on after epoch 1" in caplog.text
