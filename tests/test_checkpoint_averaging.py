import keras
import numpy as np
import pytest

from attention_zoo.training.callbacks.checkpoint_averaging import CheckpointAveraging, average_weights


class Recorder(keras.callbacks.Callback):
    """Remembers the weights after every step and epoch."""

    def on_train_begin(self, logs=None):
        self.after_steps, self.after_epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.after_steps.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.after_epochs.append(self.model.get_weights())


def make_model(dtype="float32", steps_per_execution=1):
    layers = [keras.layers.BatchNormalization(dtype=dtype), keras.layers.Dense(1, dtype=dtype)]
    model = keras.Sequential([keras.Input([2]), *layers])
    model.compile("adam", "mse", steps_per_execution=steps_per_execution)
    return model


def fit(model, *callbacks, epochs=4):
    x = np.random.default_rng(0).normal(size=[8, 2])
    model.fit(x, x.sum(1), batch_size=2, shuffle=False, epochs=epochs, verbose=0, callbacks=list(callbacks))


def assert_mean_of(model, checkpoints):
    for weight, *values in zip(model.get_weights(), *checkpoints, strict=True):
        np.testing.assert_allclose(weight, np.mean(values, axis=0), rtol=1e-6)


class TestAverageWeights:
    def test_mean_by_hand(self):
        checkpoints = [[np.float32([1, 2]), np.float32([[8]])], [np.float32([3, 0]), np.float32([[2]])]]
        first, second = average_weights(checkpoints)
        np.testing.assert_array_equal(first, [2, 1])
        np.testing.assert_array_equal(second, [[5]])
        assert first.dtype == "float32"

    def test_sums_more_precisely_than_the_weights(self):
        # In float16 the sum 40000 + 40000 is infinite.
        (mean,) = average_weights([[np.float16([40000])]] * 2)
        assert mean[0] == np.float16(40000)

    def test_changes_no_checkpoint(self):
        checkpoints = [[np.array([1.0])], [np.array([3.0])]]
        average_weights(checkpoints)
        assert checkpoints[0][0] == 1

    def test_counters_are_the_last(self):
        (count,) = average_weights([[np.array(3)], [np.array(8)]])
        assert count == 8
        assert count.dtype == int

    def test_errors(self):
        with pytest.raises(ValueError, match="at least one checkpoint"):
            average_weights([])
        with pytest.raises(ValueError, match="other shapes in number 0"):
            average_weights([[np.zeros(2)], [np.zeros(3)]])
        with pytest.raises(ValueError, match="other shapes in number 0"):
            average_weights([[np.zeros(3), np.zeros(3)], [np.zeros(3)]])


class TestCheckpointAveraging:
    def test_model_becomes_the_mean_of_the_last_epochs(self, tmp_path):
        model, recorder = make_model(), Recorder()
        fit(model, recorder, CheckpointAveraging(last=2, folder=tmp_path))
        assert_mean_of(model, recorder.after_epochs[2:])
        assert not np.allclose(model.get_weights()[0], recorder.after_epochs[-1][0], rtol=1e-6)

    def test_fewer_epochs_than_asked_for(self, tmp_path):
        model, recorder = make_model(), Recorder()
        fit(model, recorder, CheckpointAveraging(folder=tmp_path))
        assert_mean_of(model, recorder.after_epochs)

    def test_every_steps(self, tmp_path):
        model, recorder = make_model(), Recorder()
        fit(model, recorder, CheckpointAveraging(last=3, folder=tmp_path, every_steps=3))
        assert_mean_of(model, [recorder.after_steps[step - 1] for step in (9, 12, 15)])

    def test_every_steps_when_steps_come_in_twos(self, tmp_path):
        model = make_model(steps_per_execution=2)
        fit(model, CheckpointAveraging(folder=tmp_path, every_steps=3))
        # Steps 3, 9 and 15 are seen one late.
        assert [path.name[-7:-4] for path in sorted(tmp_path.iterdir())] == [
            "004",
            "006",
            "010",
            "012",
            "016",
        ]

    def test_files_are_plain_arrays_in_the_order_of_the_weights(self, tmp_path):
        model, recorder = make_model(), Recorder()
        fit(model, recorder, CheckpointAveraging(last=2, folder=tmp_path / "new" / "folder"))
        paths = sorted((tmp_path / "new" / "folder").iterdir())
        assert [path.name for path in paths] == ["step-000000012.npz", "step-000000016.npz"]
        with np.load(paths[-1]) as file:
            for index, weight in enumerate(recorder.after_epochs[-1]):
                np.testing.assert_array_equal(file[str(index)], weight)

    def test_bfloat16(self, tmp_path):
        model, recorder = make_model("bfloat16"), Recorder()
        fit(model, recorder, CheckpointAveraging(last=2, folder=tmp_path))
        for weight, *values in zip(model.get_weights(), *recorder.after_epochs[2:], strict=True):
            mean = np.mean([value.astype("float32") for value in values], axis=0)
            np.testing.assert_allclose(weight.astype("float32"), mean, rtol=2**-8)

    def test_checkpoints_of_another_training_are_removed(self, tmp_path):
        fit(make_model(), CheckpointAveraging(folder=tmp_path), epochs=6)
        model, recorder = make_model(), Recorder()
        fit(model, recorder, CheckpointAveraging(folder=tmp_path), epochs=2)
        assert_mean_of(model, recorder.after_epochs)

    @pytest.mark.parametrize("options", [{"last": 0}, {"every_steps": 0}])
    def test_errors(self, options, tmp_path):
        with pytest.raises(ValueError, match="at least 1, received 0"):
            CheckpointAveraging(folder=tmp_path, **options)
