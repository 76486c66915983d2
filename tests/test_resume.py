import functools
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.training.callbacks.checkpoint_averaging import CheckpointAveraging
from attention_zoo.training.callbacks.resume import Resume, load_arrays, save_arrays

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


class AfterStep(keras.callbacks.Callback):
    """Does something after an optimizer step, before `Resume`, which comes later in the list, sees it."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            self.action()


def interrupt(*arguments):
    raise KeyboardInterrupt


def terminate(*arguments):
    signal.raise_signal(signal.SIGTERM)


def make_model(seed=1, units=4, dtype="float32", **compilation):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input([3]),
            keras.layers.Dense(units, dtype=dtype),
            keras.layers.Dropout(0.5, dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", **compilation)
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


def assert_same_end(model, uninterrupted, epochs):
    """The state, and what the last `epochs` epochs logged."""
    assert_same_state(model, uninterrupted)
    expected = {name: values[-epochs:] for name, values in uninterrupted.history.history.items()}
    assert model.history.history == expected


def backups(folder):
    return sorted(path.name for path in (folder / "backup").iterdir())


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a training of so many epochs: computed when first asked for."""

    @functools.cache
    def folder(epochs):
        path = tmp_path_factory.mktemp("trained")
        train(path, epochs=epochs)
        return path

    return folder


@pytest.fixture
def trained(folder_of, tmp_path):
    """Fills the folder of a test with what a training of so many epochs leaves."""
    return lambda epochs: shutil.copytree(folder_of(epochs), tmp_path, dirs_exist_ok=True)


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


class TestWithinAnEpoch:
    @pytest.mark.parametrize(
        ("every_steps", "killed_after", "expected"),
        [
            (3, STEPS + 4, ["epoch-000001.npz", "epoch-000001.step-000000003.npz"]),
            (1, STEPS + 4, ["epoch-000001.step-000000002.npz", "epoch-000001.step-000000003.npz"]),
            (2, 3, ["epoch-000000.step-000000002.npz"]),
        ],
    )
    def test_goes_on_at_the_same_batch(self, every_steps, killed_after, expected, tmp_path, uninterrupted):
        options = {"every_steps": every_steps}
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, AfterStep(killed_after, interrupt), resume_options=options)
        assert backups(tmp_path) == expected
        model, epochs = train(tmp_path, model=make_model(seed=2), resume_options=options)
        # The loss of the first of them is that of all its batches, also of those before the backup.
        assert_same_end(model, uninterrupted, len(epochs))
        assert epochs[0] == (killed_after - 1) // STEPS

    def test_killed_after_the_last_batch_of_an_epoch(self, tmp_path, uninterrupted):
        """As in its validation: no batch is left, but the end of the epoch comes once more."""
        killer = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epoch == 1 and interrupt())
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, killer, resume_options={"every_steps": 2})
        assert backups(tmp_path)[-1] == "epoch-000001.step-000000004.npz"
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [1, 2, 3, 4]
        assert_same_end(model, uninterrupted, 4)

    @pytest.mark.parametrize(
        ("every_steps", "killed_in", "steps"),
        [(1, "on_train_batch_end", 2), (3, "on_epoch_end", 4)],  # 3 is never seen, 4 is the first beyond
    )
    def test_several_steps_at_once(self, every_steps, killed_in, steps, tmp_path, uninterrupted):
        def kill(number, logs):
            if int(model.optimizer.iterations) == 2 * STEPS:
                interrupt()

        model = make_model(steps_per_execution=2)
        options = {"every_steps": every_steps}
        with pytest.raises(KeyboardInterrupt):
            killer = keras.callbacks.LambdaCallback(**{killed_in: kill})
            train(tmp_path, killer, model=model, resume_options=options)
        assert backups(tmp_path)[-1] == f"epoch-000001.step-{steps:09d}.npz"
        model, epochs = train(
            tmp_path, model=make_model(seed=2, steps_per_execution=2), resume_options=options
        )
        assert epochs == [1, 2, 3, 4]
        assert_same_end(model, uninterrupted, 4)

    def test_backups_of_older_versions_know_no_batches(self, tmp_path, uninterrupted, trained):
        trained(2)
        for path in (tmp_path / "backup").iterdir():
            arrays = load_arrays(path)
            state = json.loads(str(arrays.pop("state")))
            assert state.pop("steps") == 0
            arrays = {name: array for name, array in arrays.items() if not name.startswith("metric/")}
            save_arrays(path, arrays | {"state": np.array(json.dumps(state))})
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [2, 3, 4]
        assert_same_end(model, uninterrupted, 3)

    def test_metrics_that_are_made_in_the_first_step(self, tmp_path, caplog):
        """Keras's named ones do not exist yet when they would have to be restored; the rest is exact."""

        def make(seed):
            return make_model(seed, metrics=["mae"])

        expected, _ = train(tmp_path / "whole", model=make(1))
        options = {"every_steps": 3}
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, AfterStep(STEPS + 4, interrupt), model=make(1), resume_options=options)
        model, _ = train(tmp_path, model=make(2), resume_options=options)
        assert_same_state(model, expected)
        assert "the metrics of this epoch count from here on" in caplog.text

    def test_interrupted_while_batches_are_left_out(self, tmp_path, uninterrupted):
        options = {"every_steps": 3}
        model = make_model()
        for step in (STEPS + 4, STEPS + 3):  # the second time, after the first batch that is left out
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, AfterStep(step, interrupt), model=model, resume_options=options)
        model, epochs = train(tmp_path, model=model, resume_options=options)
        assert_same_end(model, uninterrupted, len(epochs))

    @pytest.mark.parametrize("every_steps", [0, -1])
    def test_bad_number_of_steps(self, every_steps, tmp_path):
        with pytest.raises(ValueError, match=f"every_steps of at least 1, received {every_steps}"):
            Resume(tmp_path, every_steps=every_steps)


@pytest.fixture
def received():
    """What a handler of SIGTERM that was there before got; it takes the place of one that ends pytest."""
    signals = []

    def handler(number, frame):
        signals.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    yield signals
    restored = signal.signal(signal.SIGTERM, before)
    assert restored is handler  # every test gives it back


class TestTermination:
    def stop(self, folder, *callbacks, model=None):
        """Trains until SIGTERM ends it."""
        with pytest.raises(SystemExit) as left:
            train(folder, *callbacks, model=model)
        assert left.value.code == 143

    @pytest.mark.parametrize("batch", [2, STEPS])
    def test_ends_after_the_batch_and_goes_on_there(self, batch, tmp_path, uninterrupted, received, caplog):
        self.stop(tmp_path, AfterStep(STEPS + batch, terminate))
        assert f"told to stop, with a backup in {tmp_path / 'backup'}" in caplog.text
        assert received == []
        assert backups(tmp_path) == ["epoch-000001.npz", f"epoch-000001.step-{batch:09d}.npz"]
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [1, 2, 3, 4]
        assert_same_end(model, uninterrupted, 4)

    def test_while_batches_are_left_out(self, tmp_path, uninterrupted, received):
        self.stop(tmp_path, AfterStep(STEPS + 3, terminate))
        names = backups(tmp_path)
        # The optimizer has made these steps from the beginning, so this is the first batch of three.
        seen = []
        look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
        self.stop(tmp_path, look, AfterStep(STEPS + 3, terminate), model=make_model(seed=2))
        assert seen == [0]
        assert backups(tmp_path) == names
        model, epochs = train(tmp_path, model=make_model(seed=3))
        assert_same_end(model, uninterrupted, len(epochs))

    def test_the_second_one_is_for_the_handler_before(self, tmp_path, received):
        def terminate_twice():
            terminate()
            assert received == []
            terminate()
            assert received == [signal.SIGTERM]

        self.stop(tmp_path, AfterStep(2, terminate_twice))

    def test_after_the_last_batch_is_not_lost(self, tmp_path, received):
        late = keras.callbacks.LambdaCallback(on_epoch_end=terminate)  # as in the last validation
        with pytest.raises(SystemExit) as left:
            train(tmp_path, late, epochs=1)
        assert left.value.code == 128 + signal.SIGTERM
        assert backups(tmp_path) == ["epoch-000001.npz"]

    def test_after_the_last_backup_does_what_it_did_before(self, tmp_path, received):
        late = keras.callbacks.LambdaCallback(on_train_end=terminate)
        train(tmp_path, late, epochs=1)
        assert received == [signal.SIGTERM]

    def test_is_given_back_at_the_end_and_by_close(self, tmp_path, received):
        before = signal.getsignal(signal.SIGTERM)
        model, resume = make_model(), Resume(tmp_path)
        options = {"verbose": 0, "shuffle": False}
        with pytest.raises(KeyboardInterrupt):
            model.fit(Batches().dataset(), callbacks=[AfterStep(1, interrupt), resume], **options)
        assert signal.getsignal(signal.SIGTERM) is not before
        model.fit(Batches().dataset(), callbacks=[resume], **options)
        assert signal.getsignal(signal.SIGTERM) is before
        interrupter = AfterStep(int(model.optimizer.iterations) + 1, interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.fit(Batches().dataset(), epochs=2, callbacks=[interrupter, resume], **options)
        assert signal.getsignal(signal.SIGTERM) is not before
        for _ in range(2):
            resume.close()
            assert signal.getsignal(signal.SIGTERM) is before

    def test_of_one_fit_does_not_stop_the_next(self, tmp_path, received):
        model, resume = make_model(), Resume(tmp_path)
        options = {"verbose": 0, "shuffle": False}
        with pytest.raises(SystemExit):
            model.fit(Batches().dataset(), callbacks=[AfterStep(1, terminate), resume], **options)
        assert model.fit(Batches().dataset(), callbacks=[resume], **options).epoch == [0]

    def test_is_not_listened_for_in_other_threads(self, tmp_path, received):
        """Python does not allow it; the training itself works."""
        before, results, handlers = signal.getsignal(signal.SIGTERM), [], []
        look = AfterStep(1, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
        thread = threading.Thread(target=lambda: results.append(train(tmp_path, look, epochs=2)))
        thread.start()
        thread.join()
        assert [epochs for _, epochs in results] == [[0, 1]]
        assert handlers == [before]
        assert backups(tmp_path) == ["epoch-000001.npz", "epoch-000002.npz"]


class TestComplete:
    def test_a_complete_training_is_not_repeated(self, tmp_path, uninterrupted, caplog, trained):
        trained(EPOCHS)
        caplog.clear()
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == []
        assert_same_state(model, uninterrupted)
        assert "complete after 5 epochs" in caplog.text

    def test_more_epochs_go_on(self, tmp_path, uninterrupted, trained):
        trained(2)
        model, epochs = train(tmp_path, model=make_model(seed=2))
        assert epochs == [2, 3, 4]
        assert_same_state(model, uninterrupted)

    @pytest.mark.parametrize("epochs", [2, 4])
    def test_the_next_fit_of_the_model_starts_at_0(self, tmp_path, epochs, trained):
        trained(2)
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
    def test_two_backups_are_kept_and_no_half_ones(self, tmp_path, trained):
        trained(EPOCHS)
        assert backups(tmp_path) == ["epoch-000004.npz", "epoch-000005.npz"]

    @pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
    def test_a_damaged_backup_gives_way_to_the_one_before(
        self, damage, tmp_path, uninterrupted, caplog, trained
    ):
        trained(3)
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

    def test_a_half_written_backup_is_not_looked_at(self, tmp_path, uninterrupted, trained):
        trained(3)
        (tmp_path / "backup" / "epoch-000004.partial").write_bytes(b"half")
        model, epochs = train(tmp_path)
        assert epochs == [3, 4]
        assert_same_state(model, uninterrupted)
        assert backups(tmp_path) == ["epoch-000004.npz", "epoch-000005.npz"]

    def test_only_damaged_backups(self, tmp_path, trained):
        trained(2)
        for path in (tmp_path / "backup").iterdir():
            path.write_bytes(b"")
        with pytest.raises(ValueError, match="2 damaged; delete the folder to start over"):
            train(tmp_path)

    def test_backup_of_another_model(self, tmp_path, trained):
        trained(1)
        with pytest.raises(ValueError, match="expected a backup of this model"):
            train(tmp_path, model=make_model(units=5))

    def test_model_without_weights(self, tmp_path):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("adam", "mse")
        with pytest.raises(ValueError, match="not built; call it on a batch before fit"):
            train(tmp_path, model=model)

    def test_backup_of_another_precision(self, tmp_path, trained):
        trained(1)
        with pytest.raises(ValueError, match="expected a backup of this model"):
            train(tmp_path, model=make_model(dtype="bfloat16"))

    def test_other_callbacks_than_in_the_backup(self, tmp_path, trained):
        trained(1)
        with pytest.raises(ValueError, match=r"expected the 0 callbacks .*received 1"):
            train(tmp_path, resume_options={"callbacks": [keras.callbacks.Callback()]})

    def test_says_that_it_goes_on(self, tmp_path, caplog, trained):
        trained(1)
        with caplog.at_level(logging.INFO, logger="attention_zoo"):
            train(tmp_path, epochs=2)
        assert "going on after epoch 1" in caplog.text
