"""Two workers make the updates of one device; interrupted ones end where uninterrupted ones do."""

import functools
import signal
import sys

import distributed
import numpy as np
import pytest

from attention_zoo.training import launcher


@pytest.fixture(scope="module")
def one_device():
    """What training on one device gives, weights and history: computed when first asked for."""
    return functools.cache(lambda name: distributed.train(name, short=False))


def launch(folder, mode):
    return launcher.launch([str(folder), mode], workers=2, command=[sys.executable, distributed.__file__])


def end(folder, worker):
    with np.load(folder / f"end-{worker}.npz") as file:
        return list(file.values())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert launch(folder, "uninterrupted") == 0
    return folder


class TestTwoWorkers:
    @pytest.mark.parametrize("name", distributed.MODELS)
    def test_same_updates(self, uninterrupted, one_device, name):
        with np.load(uninterrupted / f"{name}.npz") as file:
            *weights, loss = file.values()
        expected, history = one_device(name)
        distributed.assert_same((weights, {"loss": loss}), (expected, {"loss": history["loss"]}))

    def test_all_end_alike_and_only_the_chief_writes(self, uninterrupted):
        for one, other in zip(end(uninterrupted, 0), end(uninterrupted, 1), strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(list((uninterrupted / "checkpoints").iterdir())) == 2

    def test_stopped_and_killed_workers_end_where_uninterrupted_ones_do(self, uninterrupted, tmp_path):
        """Dropout included. SIGTERM reaches one worker, all save; SIGKILL hits one, all start again."""
        assert launch(tmp_path, "interrupted") == 128 + signal.SIGTERM
        assert max(path.name for path in (tmp_path / "backup").iterdir()) == "epoch-000000.step-000000007.npz"
        assert launch(tmp_path, "interrupted") == 0
        assert (tmp_path / f"sent-{signal.SIGKILL}").exists()
        for one, other in zip(end(tmp_path, 1), end(uninterrupted, 1), strict=True):
            np.testing.assert_array_equal(one, other)
