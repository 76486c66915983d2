"""Two workers make the updates of one device; interrupted ones end where uninterrupted ones do."""

import signal
import sys

import distributed
import numpy as np
import pytest

from attention_zoo.training import launcher


def launch(folder, time):
    return launcher.launch([str(folder), time], workers=2, command=[sys.executable, distributed.__file__])


def end(folder, worker):
    with np.load(folder / f"end-{worker}.npz") as file:
        return list(file.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What workers have written when SIGTERM reaches one of them in their last training, and all leave."""
    folder = tmp_path_factory.mktemp("workers")
    assert launch(folder, "first") == 128 + signal.SIGTERM
    return folder


class TestTwoWorkers:
    @pytest.mark.parametrize("name", distributed.ON_WORKERS)
    def test_same_updates(self, folder, name):
        with np.load(folder / f"{name}.npz") as file:
            *weights, loss = file.values()
        expected, history = distributed.on_one_device(name, short=name in distributed.WITH_SHORT_BATCHES)
        distributed.assert_same((weights, {"loss": loss}), (expected, {"loss": history["loss"]}))

    def test_all_end_alike_and_only_the_chief_writes(self, folder):
        ends = [end(folder / "uninterrupted", worker) for worker in range(2)]
        for one, other in zip(*ends, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(list((folder / "uninterrupted" / "checkpoints").iterdir())) == 2

    def test_stopped_and_killed_workers_end_where_uninterrupted_ones_do(self, folder):
        """Dropout included. SIGTERM has reached one worker, all saved; SIGKILL hits one, all start again."""
        backups = [path.name for path in (folder / "interrupted" / "backup").iterdir()]
        assert max(backups) == "epoch-000000.step-000000007.npz"
        assert launch(folder, "again") == 0
        assert (folder / f"sent-{signal.SIGKILL}").exists()
        ends = [end(folder / part, worker=1) for part in ("interrupted", "uninterrupted")]
        for one, other in zip(*ends, strict=True):
            np.testing.assert_array_equal(one, other)
