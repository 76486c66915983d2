import types

import keras
import numpy as np
import pytest

from attention_zoo.models.translation import Translation
from attention_zoo.training.callbacks.translation_score import TranslationScore

pytest.importorskip("sacrebleu")
SOURCES, REFERENCES = ["one", "two"], ["w x y z", "a b c d ."]


class Parrot(keras.Sequential):
    """Stands in for a Translator: from its second translation on it is right."""

    translations = 0

    def translate(self, texts, beams):
        assert texts == SOURCES
        self.beams = beams
        self.translations += 1
        right = REFERENCES if self.translations > 1 else ["nothing is right here", "nor here , sorry"]
        return [Translation(text, 0.0, [], []) for text in right]


def train(*callbacks, epochs=3):
    model = Parrot([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(
        np.zeros([2, 1]), np.zeros([2, 1]), epochs=epochs, verbose=0, callbacks=list(callbacks)
    )
    return model, history


class TestTranslationScore:
    def test_writes_the_logs(self):
        model, history = train(TranslationScore((SOURCES, REFERENCES), beams=3))
        scores = history.history["val_bleu"]
        assert scores[0] < 20
        assert scores[1:] == pytest.approx([100, 100])
        assert model.beams == 3

    def test_takes_parallel_text(self):
        texts = types.SimpleNamespace(sources=SOURCES, targets=REFERENCES)
        _, history = train(TranslationScore(texts), epochs=2)
        assert history.history["val_bleu"][1] == pytest.approx(100)

    def test_later_callbacks_can_monitor_it(self, tmp_path):
        best = tmp_path / "best.weights.h5"
        stopping = keras.callbacks.EarlyStopping(monitor="val_bleu", mode="max", patience=2)
        saving = keras.callbacks.ModelCheckpoint(
            str(best), monitor="val_bleu", mode="max", save_best_only=True, save_weights_only=True
        )
        _, history = train(TranslationScore((SOURCES, REFERENCES)), stopping, saving, epochs=9)
        assert best.is_file()
        assert stopping.best == pytest.approx(100)
        assert len(history.epoch) == 4  # right in the second, no better in two more

    def test_every_second_epoch(self):
        model, history = train(TranslationScore((SOURCES, REFERENCES), every=2), epochs=5)
        assert model.translations == 2
        assert len(history.history["val_bleu"]) == 2

    def test_tokenized(self):
        texts = (SOURCES, ["w x y z", "a b c d."])
        _, ordinary = train(TranslationScore(texts), epochs=2)
        _, tokenized = train(TranslationScore(texts, tokenized=True), epochs=2)
        assert ordinary.history["val_bleu"][1] == pytest.approx(100)
        assert tokenized.history["val_bleu"][1] < 90

    def test_errors(self):
        with pytest.raises(ValueError, match="every of at least 1, received 0"):
            TranslationScore((SOURCES, REFERENCES), every=0)
        with pytest.raises(ValueError, match="received 2 sources and 1 references"):
            TranslationScore((SOURCES, ["a"]))
        with pytest.raises(ValueError, match="received 0 sources"):
            TranslationScore(([], []))
