"""What is particular to a recipe that trains a Translator."""

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from attention_zoo.models.saving import load
from attention_zoo.models.translation import Translation
from attention_zoo.models.translator import Translator
from attention_zoo.training import strategies
from attention_zoo.training.batching import TranslationBatches
from attention_zoo.training.callbacks.translation_score import TranslationScore
from attention_zoo.training.evaluation import (
    bleu_by_length,
    evaluate_translations,
    exact_match,
    sentence_costs,
)
from attention_zoo.training.generated_dates import training_and_held_out
from attention_zoo.training.recipe import PARTS, GeneratedDates, trained_model
from attention_zoo.training.risk_batching import RiskBatches
from attention_zoo.training.task import SAMPLES, Task, run_in_fresh_process, train_tokenizer, write_text
from attention_zoo.training.text_data import ParallelText

logger = logging.getLogger("attention_zoo")

TEACHER = "teacher.json"  # in the output folder: what the teacher made of the training sources
BACK_TRANSLATIONS = "back_translations.json"  # what a model of the other direction made of the targets
CANDIDATES = "candidates.json"  # likewise: translations of them to weigh, and their costs
MADE = (TEACHER, BACK_TRANSLATIONS, CANDIDATES)

# Runs in a process of its own, to prove that serving needs nothing but these two imports.
FRESH_PROCESS = """
import json, sys
import tensorflow as tf
import tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
texts = serve(texts=tf.constant(json.load(sys.stdin)))["text"].numpy()
assert "attention_zoo" not in sys.modules
print(json.dumps([text.decode() for text in texts]))
"""


class Data(NamedTuple):
    """The three parts of a corpus."""

    training: ParallelText
    validation: ParallelText
    test: ParallelText


class TranslationTask(Task):
    """Text to text: see `Task` for what each method does."""

    inputs, outputs = "sentences", "translations"

    def read_data(self) -> Data:
        """Reads or generates training, validation and test text."""
        settings = self.recipe.data
        if isinstance(settings, GeneratedDates):
            count = settings.held_out_count
            training, held_out = training_and_held_out(
                settings.training_count, 2 * count, seed=self.recipe.seed
            )
            return Data(training, validation=held_out[:count], test=held_out[count:])
        return Data(*(ParallelText.from_files(*settings.paths(part)) for part in PARTS))

    def build_model(self, data: Data) -> Translator:
        """Learns the source and the target tokenizer, with `joint` one object, and builds the model."""
        settings, text, changes = self.recipe.tokenizers, data.training, self.recipe.model
        if settings.joint:
            source = target = train_tokenizer(settings.source, [*text.sources, *text.targets])
        else:
            source = train_tokenizer(settings.source, text.sources)
            target = train_tokenizer(settings.target or settings.source, text.targets)
        return Translator.from_preset(
            changes.preset,
            source_tokenizer=source,
            target_tokenizer=target,
            encoder=changes.encoder.model_dump(exclude_unset=True),
            decoder=changes.decoder.model_dump(exclude_unset=True),
            share_embeddings=changes.share_embeddings,
        )

    def batches(
        self, model: Translator, data: Data
    ) -> tuple[TranslationBatches | RiskBatches, TranslationBatches]:
        """Returns the batches for training and for validation."""
        settings, tokenizers = self.recipe.training, (model.source_tokenizer, model.target_tokenizer)
        size = {"batch_tokens": settings.batch_tokens, "max_buckets": settings.max_buckets}
        validation = TranslationBatches(
            data.validation, *tokenizers, batch_tokens=settings.batch_tokens, shuffle=False
        )
        text, write = data.training, strategies.is_chief(model.distribute_strategy)
        if settings.risk:
            found = self._candidates(model, text, write)
            return RiskBatches(text, *found, *tokenizers, **size, seed=self.recipe.seed), validation
        sources, targets = list(text.sources), list(text.targets)
        if settings.teacher:
            sources += text.sources
            targets += self._taught(text.sources, write)
        if settings.back_translator:
            for made in self._back_translated(text.targets, write):
                sources += made
                targets += text.targets
        text = ParallelText(sources, targets)
        subword_dropout = settings.subword_dropout or 0.0
        training = TranslationBatches(
            text, *tokenizers, **size, subword_dropout=subword_dropout, seed=self.recipe.seed
        )
        return training, validation

    def objective(self) -> dict[str, Any]:
        """The weight of the expected risk."""
        return {"risk": self.recipe.training.risk or 0.0}

    def _taught(self, sources: list[str], write: bool) -> list[str]:
        """What the teacher makes of the training sources.

        A model learns from the translations of a better one what it cannot learn from people's, as they are
        simpler and less varied (Kim and Rush 2016, "Sequence-Level Knowledge Distillation", section 3.2).
        """
        search = self.recipe.search
        settings = {"beams": search.beams, "length_penalty": search.length_penalty}
        return self._translated("teacher", TEACHER, sources, [settings], write)[0]

    def _back_translated(self, targets: list[str], write: bool) -> list[list[str]]:
        """What a model of the other direction makes of the training targets: the best, and one by chance.

        The targets stay those of people; that there are more ways to say the same is what a small corpus does
        not show (Sennrich, Haddow and Birch 2016, "Improving Neural Machine Translation Models with
        Monolingual Data"; Edunov et al. 2018, "Understanding Back-Translation at Scale", for what is drawn).
        """
        search = self.recipe.search
        best = {"beams": search.beams, "length_penalty": search.length_penalty}
        drawn = {"sample": True, "top_p": 0.95, "seed": self.recipe.seed}
        return self._translated("back_translator", BACK_TRANSLATIONS, targets, [best, drawn], write)

    def _translated(
        self, key: str, file: str, texts: list[str], ways: list[dict[str, Any]], write: bool
    ) -> list[list[str]]:
        """What the model that a key names makes of texts, in some ways; kept for an interrupted run."""
        name, path = getattr(self.recipe.training, key), self.recipe.folder / file
        if path.is_file():
            logger.info("Translations by training.%s: %s", key, path)
            return json.loads(path.read_text(encoding="utf-8"))
        model = load(trained_model(name))
        if not isinstance(model, Translator):
            raise ValueError(
                f"training.{key}: expected a Translator, received {name}, a {type(model).__name__}."
            )
        made = []
        for settings in ways:
            logger.info("%s translates %s training sentences ...", name, f"{len(texts):,}")
            made.append([translation.text for translation in model.translate(texts, **settings)])
        if write:
            write_text(path, json.dumps(made, indent=0, ensure_ascii=False) + "\n")
        return made

    def _candidates(
        self, model: Translator, text: ParallelText, write: bool
    ) -> tuple[list[list[str]], list[list[float]]]:
        """The best translations that the model has at the start, and their costs; kept like the teacher's."""
        settings, path = self.recipe.training, self.recipe.folder / CANDIDATES
        if path.is_file():
            logger.info("The candidates: %s", path)
            kept = json.loads(path.read_text(encoding="utf-8"))
            return kept["candidates"], kept["costs"]
        count, penalty = settings.candidates, self.recipe.search.length_penalty
        logger.info("Looking for %d candidates each of %s sentences ...", count, f"{len(text):,}")
        translations = model.translate(text.sources, beams=count, n_best=count, length_penalty=penalty)
        candidates = [
            [translation.text, *(other.text for other in translation.alternatives)]
            for translation in translations
        ]
        costs = sentence_costs(candidates, text.targets, self.recipe.evaluation.tokenized)
        kept = {"candidates": candidates, "costs": costs.astype("float64").round(4).tolist()}
        if write:
            write_text(path, json.dumps(kept, ensure_ascii=False) + "\n")
        return kept["candidates"], kept["costs"]

    @property
    def monitored(self) -> str | None:
        """Validation BLEU, where it is asked for."""
        return "val_bleu" if self.recipe.evaluation.metric == "bleu" else None

    def score_callback(self, model: Translator, data: Data) -> TranslationScore:
        """Returns the callback that computes validation BLEU."""
        settings = self.recipe.evaluation
        return TranslationScore(data.validation, every=settings.every_epochs, tokenized=settings.tokenized)

    def predict(self, model: Translator, data: Data) -> list[Translation]:
        """Translates the test part."""
        search = self.recipe.search
        logger.info("Translating %d held-out sentences, beams=%d ...", len(data.test), search.beams)
        return model.translate(data.test.sources, beams=search.beams, length_penalty=search.length_penalty)

    def score(self, data: Data, outputs: Sequence[Translation]) -> dict[str, Any]:
        """Computes exact match, or BLEU and chrF."""
        settings, text = self.recipe.evaluation, data.test
        hypotheses = [translation.text for translation in outputs]
        if settings.metric == "exact_match":
            share = exact_match(hypotheses, text.targets)
            logger.info("Exact match: %.2f%% of %d", 100 * share, len(text))
            return {"exact_match": share}
        scores: dict[str, Any] = {}
        for kind in ["detokenized", "tokenized"] if settings.tokenized else ["detokenized"]:
            result = evaluate_translations(hypotheses, text.targets, tokenized=kind == "tokenized")
            logger.info("%s\n%s", kind.capitalize(), result)
            scores[kind] = vars(result)
        if settings.by_length:
            rows = bleu_by_length(hypotheses, text.targets, text.sources, tokenized=settings.tokenized)
            logger.info("BLEU by source length\n    words   count    BLEU\n%s", "\n".join(map(str, rows)))
            scores["bleu_by_length"] = [vars(row) for row in rows]
        return scores

    def examples(self, data: Data) -> list[tuple[str, list[str]]]:
        """Returns sentences and their references."""
        pairs = zip(data.test.sources[:SAMPLES], data.test.targets, strict=False)
        return [(source, [target]) for source, target in pairs]

    def draw(self, model: Translator, data: Data) -> None:
        """Draws the alignment of one sentence, and the heads of a Transformer."""
        if not model.decoder.has_attention:
            logger.info("No picture: preset %s has no attention.", self.recipe.model.preset)
            return
        source = max(data.test.sources[:SAMPLES], key=len)  # the longest sample shows most
        translation = model.translate(source, beams=self.recipe.search.beams, return_attention=True)
        path = self.recipe.folder / "alignment.png"
        translation.plot(path)
        logger.info("Alignment of %r: %s", source, path)
        if model.encoder.has_attention:  # many heads: a picture of each layer
            folder = self.recipe.folder / "heads"
            for part, layers in translation.heads.items():
                for layer in range(len(layers)):
                    translation.plot_heads(folder / f"{part}-{layer + 1}.png", part, layer)
            logger.info("Its heads, layer by layer: %s", folder)

    def serve(self, folder: pathlib.Path, data: Data) -> list[str]:
        """Translates the samples in a fresh process."""
        return run_in_fresh_process(FRESH_PROCESS, folder, data.test.sources[:SAMPLES])
