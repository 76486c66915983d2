"""What is particular to a recipe that trains a Captioner."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from attention_zoo.models.caption import Caption
from attention_zoo.models.captioner import Captioner
from attention_zoo.training import generated_scenes
from attention_zoo.training.callbacks.caption_score import CaptionScore
from attention_zoo.training.caption_batching import CaptionBatches
from attention_zoo.training.caption_metrics import evaluate_captions
from attention_zoo.training.feature_cache import cached_features
from attention_zoo.training.image_data import CaptionedImages
from attention_zoo.training.pointing import pointing
from attention_zoo.training.recipe import GeneratedScenes, ImageFiles
from attention_zoo.training.task import SAMPLES, Task, run_in_fresh_process, train_tokenizer

logger = logging.getLogger("attention_zoo")

PICTURES = 4  # held-out images of which it is drawn where the model looked

# Runs in a process of its own, to prove that serving needs nothing but these two imports.
FRESH_PROCESS = """
import json, sys
import tensorflow as tf
import tensorflow_text
signatures = tf.saved_model.load(sys.argv[1]).signatures
request = json.load(sys.stdin)
if "files" in request:
    encoded = tf.stack([tf.io.read_file(path) for path in request["files"]])
    texts = signatures["encoded"](encoded=encoded)["text"].numpy()
else:
    images = tf.constant(request["images"], tf.uint8)
    texts = signatures["serving_default"](images=images)["text"].numpy()
assert "attention_zoo" not in sys.modules
print(json.dumps([text.decode() for text in texts]))
"""


class Data(NamedTuple):
    """The three parts of captioned images.

    Where the recipe has no test part, `test` is the validation part. `scenes` are those of the test part;
    photos have none.
    """

    training: CaptionedImages
    validation: CaptionedImages
    test: CaptionedImages
    scenes: Sequence[generated_scenes.Scene] = ()


class CaptioningTask(Task):
    """Images to text: see `Task` for what each method does."""

    inputs, outputs = "images", "captions"

    def read_data(self) -> Data:
        """Reads training, validation and test images, or generates scenes."""
        settings = self.recipe.data
        if isinstance(settings, GeneratedScenes):
            count = settings.held_out_count
            training, held_out = generated_scenes.training_and_held_out(
                settings.training_count, 2 * count, seed=self.recipe.seed, image_size=settings.image_size
            )
            parts = (training, held_out[:count], held_out[count:])
            return Data(*map(_captioned, parts), scenes=held_out[count:])
        read = CaptionedImages.from_files if isinstance(settings, ImageFiles) else CaptionedImages.from_coco
        training, validation = read(*settings.paths("training")), read(*settings.paths("validation"))
        return Data(training, validation, read(*settings.paths("test")) if settings.test else validation)

    def build_model(self, data: Data) -> Captioner:
        """Learns the tokenizer of the captions and builds the model."""
        texts = [text for texts in data.training.captions for text in texts]
        changes = self.recipe.model
        penalty = changes.doubly_stochastic
        return Captioner.from_preset(
            changes.preset,
            train_tokenizer(self.recipe.tokenizers.captions, texts),
            encoder=changes.encoder.model_dump(exclude_unset=True),
            decoder=changes.decoder.model_dump(exclude_unset=True),
            **({} if penalty is None else {"doubly_stochastic": penalty}),
        )

    def batches(self, model: Captioner, data: Data) -> tuple[CaptionBatches, CaptionBatches]:
        """Returns the batches for training and for validation, which has all captions."""
        settings, size = self.recipe.training, model.encoder.image_size
        mirror = bool(settings.mirror)
        if mirror and self._features is not None:
            mirror = self._seen(model, data.training, mirrored=True).images
        training = CaptionBatches(
            self._seen(model, data.training),
            model.tokenizer,
            batch_size=settings.batch_size,
            image_size=size,
            captions=settings.captions,
            mirror=mirror,
            seed=self.recipe.seed,
        )
        validation = CaptionBatches(
            self._seen(model, data.validation),
            model.tokenizer,
            batch_size=settings.batch_size,
            image_size=size,
            captions="all",
            shuffle=False,
        )
        return training, validation

    @property
    def monitored(self) -> str | None:
        """Validation CIDEr-D, where it is asked for."""
        return "val_cider_d" if self.recipe.evaluation.metric == "captions" else None

    def score_callback(self, model: Captioner, data: Data) -> CaptionScore:
        """Returns the callback that computes validation CIDEr-D and BLEU-4."""
        validation = self._seen(model, data.validation)
        return CaptionScore(validation, every=self.recipe.evaluation.every_epochs)

    def predict(self, model: Captioner, data: Data) -> list[Caption]:
        """Captions the test part; of scenes, with attention."""
        search = self.recipe.search
        logger.info("Captioning %d held-out images, beams=%d ...", len(data.test), search.beams)
        return model.caption(
            self._seen(model, data.test).images,
            beams=search.beams,
            length_penalty=search.length_penalty,
            return_attention=bool(data.scenes) and model.decoder.has_attention,
        )

    def score(self, data: Data, outputs: Sequence[Caption]) -> dict[str, Any]:
        """Computes exact match, or BLEU, CIDEr-D and ROUGE-L; of scenes, also where the model looked."""
        hypotheses, references = [caption.text for caption in outputs], data.test.captions
        scores: dict[str, Any] = {}
        if self.recipe.evaluation.metric == "captions":
            result = evaluate_captions(hypotheses, references)
            logger.info("Captions\n%s", result)
            scores["captions"] = vars(result)
        else:
            known = {text for texts in data.training.captions for text in texts}
            right = [one in texts for one, texts in zip(hypotheses, references, strict=True)]
            new = [hit for hit, texts in zip(right, references, strict=True) if known.isdisjoint(texts)]
            scores["exact_match"] = sum(right) / len(right)
            scores["exact_match_new_captions"] = sum(new) / len(new) if new else None
            scores["new_captions"] = len(new)
            logger.info("Exact match: %.2f%% of %d", 100 * scores["exact_match"], len(right))
            if new:
                logger.info(
                    "Exact match where no training image has the caption: %.2f%% of %d",
                    100 * scores["exact_match_new_captions"], len(new),
                )  # fmt: skip
        if data.scenes and outputs[0].attention is not None:
            result = pointing(outputs, data.scenes)
            logger.info("%s", result)
            scores["pointing"] = vars(result)
        return scores

    def examples(self, data: Data) -> list[tuple[str, list[str]]]:
        """Returns names of files, or numbers of scenes, and the references."""
        images, references = data.test.images[:SAMPLES], data.test.captions[:SAMPLES]
        if data.scenes:
            names = [f"scene {number}" for number in range(1, len(images) + 1)]
        else:
            names = [path.name for path in images]
        return list(zip(names, references, strict=True))

    def draw(self, model: Captioner, data: Data) -> None:
        """Draws, for a few images, where the model looked while it said each word."""
        if not model.decoder.has_attention:
            logger.info("No picture: preset %s has no attention.", self.recipe.model.preset)
            return
        for number, image in enumerate(data.test.images[:PICTURES], start=1):
            caption = model.caption(image, beams=self.recipe.search.beams, return_attention=True)
            if not caption.words():
                logger.info("No picture of held-out image %d, whose caption is empty.", number)
                continue
            path = self.recipe.folder / f"attention-{number}.png"
            caption.plot(path)
            logger.info("Attention of %r: %s", caption.text, path)

    def export(self, model: Captioner, data: Data, outputs: Sequence[Caption]) -> dict[str, int]:
        """Writes the SavedModel and compares what it makes of the images."""
        # Features on disk are rounded, which can decide between two captions; what is served reads images.
        if self._features is not None:
            search = self.recipe.search
            outputs = model.caption(
                data.test.images[:SAMPLES], beams=search.beams, length_penalty=search.length_penalty
            )
        return super().export(model, data, outputs)

    def serve(self, folder: pathlib.Path, data: Data) -> list[str]:
        """Captions the samples in a fresh process: files by the signature "encoded", arrays by the other."""
        images = data.test.images[:SAMPLES]
        if isinstance(images, np.ndarray):
            return run_in_fresh_process(FRESH_PROCESS, folder, {"images": images.tolist()})
        return run_in_fresh_process(FRESH_PROCESS, folder, {"files": [str(path) for path in images]})

    @property
    def _features(self) -> str | None:
        """The folder of the features; None where the model reads images."""
        return None if isinstance(self.recipe.data, GeneratedScenes) else self.recipe.data.features

    def _seen(self, model: Captioner, part: CaptionedImages, mirrored: bool = False) -> CaptionedImages:
        """What the model reads: the images, or their features, computed the first time."""
        if self._features is None:
            return part
        return cached_features(model.encoder, part, self._features, console=self.console, mirrored=mirrored)


def _captioned(scenes: Sequence[generated_scenes.Scene]) -> CaptionedImages:
    return CaptionedImages(np.stack([scene.image for scene in scenes]), [scene.caption for scene in scenes])
