"""Which strategy is made, and what workers tell each other; two real ones are in test_distribution.py."""

import json
import types

import numpy as np
import pytest
import tensorflow as tf

from attention_zoo.training import strategies


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.fixture(scope="module")
def mirrored():
    """On the logical devices that conftest.py makes; a process takes one such strategy."""
    return strategies.strategy("mirrored")


@pytest.fixture
def one_device():
    return strategies.strategy("one_device")


def config(**cluster):
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})


class TestStrategy:
    def test_one_device_is_no_distribution(self, one_device):
        assert one_device is tf.distribute.get_strategy()
        assert one_device.num_replicas_in_sync == 1

    def test_mirrored_has_a_replica_on_every_device(self, mirrored):
        assert isinstance(mirrored, tf.distribute.MirroredStrategy)
        assert mirrored.num_replicas_in_sync == 2
        assert len(set(mirrored.extended.worker_devices)) == 2

    @pytest.mark.parametrize("name", ["one_device", "mirrored"])
    def test_every_call_returns_the_same(self, name):
        assert strategies.strategy(name) is strategies.strategy(name)

    @pytest.mark.parametrize("name", ["mirored", "", None])
    def test_unknown_name(self, name):
        with pytest.raises(ValueError, match=r"expected one of auto, .*multi_worker, received"):
            strategies.strategy(name)

    @pytest.mark.parametrize(
        ("gpus", "text", "expected"),
        [
            (0, "", "one_device"),
            (1, "", "one_device"),
            (2, "", "mirrored"),
            (2, "{}", "mirrored"),
            (2, config(worker=["a:1"]), "mirrored"),
            (2, config(worker=["a:1", "b:1"]), "multi_worker"),
            (0, config(worker=["a:1", "b:1"]), "multi_worker"),
            (0, config(chief=["a:1"], worker=["b:1"]), "multi_worker"),
        ],
    )
    def test_auto_goes_by_workers_and_gpus(self, gpus, text, expected, monkeypatch):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * gpus)
        monkeypatch.setattr(strategies, "_make", lambda name: name)
        monkeypatch.setenv("TF_CONFIG", text)
        assert strategies.strategy("auto") == strategies.strategy() == expected

    @pytest.mark.parametrize(
        ("text", "count"),
        [(None, 0), ("", 0), (config(), 0), (config(worker=["a:1"]), 1), (config(chief=["a:1"]), 1)],
    )
    def test_several_workers_need_two(self, text, count, monkeypatch):
        if text is not None:
            monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(ValueError, match=f"at least two workers .*received {count}; set it"):
            strategies.strategy("multi_worker")

    @pytest.mark.parametrize("name", ["auto", "multi_worker"])
    @pytest.mark.parametrize(
        "text",
        [
            "worker",
            '["a:1", "b:1"]',
            "3",
            '{"cluster": ["a:1", "b:1"]}',
            '{"cluster": {"worker": 2}}',
            '{"cluster": {"worker": null}}',
        ],
    )
    def test_bad_cluster(self, text, name, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(ValueError) as caught:
            strategies.strategy(name)
        assert "expected TF_CONFIG as JSON" in str(caught.value)
        assert f"received {text!r}" in str(caught.value)

    def test_addresses_that_are_no_list(self, monkeypatch):
        monkeypatch.setattr(strategies, "_make", lambda name: name)
        monkeypatch.setenv("TF_CONFIG", config(worker="a:1"))
        with pytest.raises(ValueError, match="expected TF_CONFIG as JSON"):
            strategies.strategy("auto")


class TestOneProcess:
    @pytest.mark.parametrize("name", ["one_device", "mirrored"])
    def test_talks_to_itself(self, name):
        strategy = strategies.strategy(name)
        assert strategies.is_chief(strategy)
        assert strategies.any_worker(strategy, True) is True
        assert strategies.any_worker(strategy, False) is False
        arrays = {"a": np.arange(3)}
        received = strategies.broadcast(strategy, arrays)
        assert received == arrays
        assert received["a"] is arrays["a"]
        assert strategies.broadcast(strategy, {}) == {}

    def test_describe(self, one_device, mirrored):
        assert strategies.describe(one_device) == "1 replica on 1 worker"
        assert strategies.describe(mirrored) == "2 replicas on 1 worker"


class TestSeveralWorkers:
    """One process that is told that it is several."""

    @pytest.fixture
    def chief(self, monkeypatch, mirrored):
        """The chief, who hears nothing from the others."""
        monkeypatch.setattr(strategies, "is_multi_worker", lambda strategy: True)
        monkeypatch.setattr(strategies, "is_chief", lambda strategy: True)
        return mirrored

    @pytest.mark.parametrize(
        ("cluster", "task", "expected"),
        [
            ({"worker": ["a:1", "b:1"]}, ("worker", 0), True),
            ({"worker": ["a:1", "b:1"]}, ("worker", 1), False),
            ({"chief": ["a:1"], "worker": ["b:1"]}, ("chief", 0), True),
            ({"chief": ["a:1"], "worker": ["b:1"]}, ("worker", 0), False),
        ],
    )
    def test_who_is_chief(self, cluster, task, expected, monkeypatch):
        monkeypatch.setattr(strategies, "is_multi_worker", lambda strategy: True)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=task[0], task_id=task[1]
        )
        assert strategies.is_chief(types.SimpleNamespace(cluster_resolver=resolver)) is expected

    @pytest.mark.parametrize("flag", [False, True])
    def test_flag(self, chief, flag):
        assert strategies.any_worker(chief, flag) is flag

    def test_arrays_travel_whole(self, chief):
        """As bytes: of any type, also those that no collective knows, and of sizes that fill no number."""
        random = np.random.default_rng(0)
        arrays = {
            "float32": random.normal(size=(2, 3)).astype("float32"),
            "float16": random.normal(size=3).astype("float16"),
            "bool": np.array([True, False, True, True, False]),
            "int64": np.array(-(2**40)),
            "uint8": np.arange(256, dtype="uint8"),
            "text": np.array('{"epoch": 3, "größer": 1}'),
            "bfloat16": np.arange(6, dtype="uint16").view("V2"),  # as NumPy's files return it
            "transposed": np.arange(6).reshape(2, 3).T,
            "nothing": np.zeros((0, 3)),
            "not numbers": np.array([np.nan, np.inf, -0.0]),
        }
        received = strategies.broadcast(chief, arrays)
        assert list(received) == list(arrays)
        for name, array in arrays.items():
            assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape), name
            assert received[name].tobytes() == array.tobytes(), name

    def test_no_arrays(self, chief):
        assert strategies.broadcast(chief, {}) == {}

    def test_describe(self, monkeypatch):
        monkeypatch.setattr(strategies, "is_multi_worker", lambda strategy: True)
        extended = types.SimpleNamespace(worker_devices=["gpu:0", "gpu:1"])
        strategy = types.SimpleNamespace(num_replicas_in_sync=6, extended=extended)
        assert strategies.describe(strategy) == "6 replicas on 3 workers"
