import numpy as np
import pytest

from attention_zoo.models.caption import Caption
from attention_zoo.training.callbacks.caption_score import CaptionScore
from attention_zoo.training.caption_metrics import evaluate_captions
from attention_zoo.training.image_data import CaptionedImages

SAID = ["a black dog runs over the grass", "two men sit on a bench"]
REFERENCES = [["a dog runs over the grass", "the dog runs"], ["two women sit on a bench"]]
DATA = CaptionedImages(np.zeros((2, 4, 4, 3), "uint8"), REFERENCES)


class Captioner:
    """Stands in for a real one, and remembers what it was asked."""

    def caption(self, images, beams):
        self.asked = images, beams
        return [Caption(text, 0.0, text.split()) for text in SAID]


def scored(epoch, **options):
    callback, logs = CaptionScore(DATA, **options), {"loss": 1.0}
    callback.set_model(Captioner())
    callback.on_epoch_end(epoch, logs)
    return callback.model, logs


class TestCaptionScore:
    def test_scores_against_all_references(self):
        pytest.importorskip("sacrebleu")
        model, logs = scored(0, beams=3)
        expected = evaluate_captions(SAID, REFERENCES)
        assert expected.cider_d > 0 and expected.bleu_4 > 0
        assert logs == {"loss": 1.0, "val_cider_d": expected.cider_d, "val_bleu_4": expected.bleu_4}
        assert model.asked[0] is DATA.images and model.asked[1] == 3

    def test_some_epochs_only(self):
        pytest.importorskip("sacrebleu")
        assert [len(scored(epoch, every=2)[1]) for epoch in range(4)] == [1, 3, 1, 3]

    def test_every_must_be_positive(self):
        with pytest.raises(ValueError, match="every of at least 1, received 0"):
            CaptionScore(DATA, every=0)
