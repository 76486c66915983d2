import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_models import T, make_batch, make_model

from attention_zoo.models import EncoderDecoder
from attention_zoo.models.tokenizer import END_ID, START_ID

# === Search ===


@pytest.fixture(scope="module")
def model_and_source():
    model = make_model()
    # Far from uniform, so that it says different things and also ends.
    model.set_weights([4 * weight for weight in model.get_weights()])
    return model, make_batch()[1][:3]


def test_greedy_is_the_most_probable_token_step_by_step(model_and_source):
    model, source = model_and_source
    prepared = model.decoder.prepare(model.encoder(source))
    state, token = model.decoder.initial_state(prepared), np.full((3, 1), START_ID)
    expected, running = [], np.ones(3, bool)
    for _ in range(5):
        logits, state, _ = model.decoder.step(token, state, prepared)
        logits = ops.convert_to_numpy(logits)
        logits[..., [0, START_ID]] = -np.inf  # never generated
        token = np.argmax(logits, axis=-1)
        expected.append(np.where(running, token[:, 0], 0))
        running &= token[:, 0] != END_ID
    found = model.generate(source, max_length=5)
    np.testing.assert_array_equal(found["tokens"][:, 0, :5], np.stack(expected, axis=1))


def test_step_by_step_equals_teacher_forcing(model_and_source):
    model, source = model_and_source
    target = np.array([[START_ID, 5, 7, 4]] * 3)
    logits, attention = model({"source": source, "target": target}, return_attention=True)
    prepared = model.decoder.prepare(model.encoder(source))
    state = model.decoder.initial_state(prepared)
    for position in range(T):
        now, state, looked = model.decoder.step(target[:, position : position + 1], state, prepared)
        np.testing.assert_allclose(now[:, 0], logits[:, position], atol=1e-5)
        np.testing.assert_allclose(looked[:, 0], attention[:, position], atol=1e-5)


def test_equal_shapes_and_settings_compile_once(model_and_source):
    model, source = model_and_source
    model._searches.by_settings.clear()
    for inputs in (source, source[::-1], source.tolist(), tf.constant(source)):
        model.generate(inputs, max_length=3)
        model.generate(inputs, max_length=np.int64(3), length_penalty=0)
    (search,) = model._searches.by_settings.values()
    assert search.function.experimental_get_tracing_count() == 1


def test_products_in_bfloat16(model_and_source):
    model, source = model_and_source
    few = model.generate(source, max_length=5, product_dtype="bfloat16")
    np.testing.assert_array_equal(few["scores"], model.generate(source, max_length=5)["scores"])
    source = np.tile(source, (3, 1))
    exact = model.generate(source, max_length=5)
    nearly = model.generate(source, max_length=5, product_dtype="bfloat16")
    difference = np.abs(nearly["scores"] - exact["scores"])
    assert 1e-5 < difference.max() < 0.05
    again = model.generate(source, max_length=5)
    np.testing.assert_array_equal(again["scores"], exact["scores"])
    tf.config.run_functions_eagerly(True)  # nothing is rounded without XLA
    try:
        eager = model.generate(source, max_length=5, product_dtype="bfloat16")
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(eager["scores"], exact["scores"], atol=1e-5)


@pytest.mark.parametrize("settings", [{"beams": 0}, {"beams": 2, "n_best": 3}, {"n_best": 0}, {"n_best": 2}])
def test_impossible_beams_are_explained(model_and_source, settings):
    model, source = model_and_source
    with pytest.raises(ValueError, match="generate: expected beams of at least 1 and n_best"):
        model.generate(source, max_length=3, **settings)


def test_coverage_penalty_without_attention_is_explained():
    with pytest.raises(ValueError, match="expected a model with attention"):
        make_model(attention=False).generate(make_batch()[1], max_length=3, coverage_penalty=0.1)


# === Saving ===


def test_config_round_trip():
    model = make_model(dropout=0.2)
    copy = EncoderDecoder.from_config(model.get_config())
    copy.build()
    assert copy.get_config() == model.get_config()
    assert [weight.shape for weight in copy.weights] == [weight.shape for weight in model.weights]


def test_weights_file_holds_the_dropout_generators(tmp_path):
    model = make_model(dropout=0.5, run_eagerly=True)
    model.train_on_batch(*make_batch())
    model.save_weights(tmp_path / "model.weights.h5")
    copy = make_model(dropout=0.5, seed=2)
    copy.load_weights(tmp_path / "model.weights.h5")
    inputs, _ = make_batch()
    expected = model(inputs, training=True)
    np.testing.assert_array_equal(copy(inputs, training=True), expected)
    assert np.any(model(inputs, training=True) != expected)  # the next masks are others


def test_weights_of_a_model_without_dropout_can_be_loaded(tmp_path):
    plain = make_model()
    plain.save_weights(tmp_path / "model.weights.h5")
    model = make_model(dropout=0.5, seed=2)
    model.load_weights(tmp_path / "model.weights.h5")
    inputs, _ = make_batch()
    np.testing.assert_array_equal(model(inputs), plain(inputs))


def test_several_outputs_per_source():
    """Each is scored as if it were alone, and so are the looks."""
    model, (inputs, _) = make_model(), make_batch(rows=3, empty=0)
    targets = np.stack([inputs["target"], np.roll(inputs["target"], 1, axis=0)], axis=1)  # (B, 2, T)
    logits, attention = model({**inputs, "target": targets}, return_attention=True)
    assert logits.shape[:3] == attention.shape[:3] == targets.shape
    for n in range(2):
        alone = model({**inputs, "target": targets[:, n]}, return_attention=True)
        np.testing.assert_allclose(logits[:, n], alone[0], atol=1e-6)
        np.testing.assert_allclose(attention[:, n], alone[1], atol=1e-6)
