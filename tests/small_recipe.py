"""A recipe for a translator that is trained in no time."""

from attention_zoo.training import Recipe

# Two epochs of almost nothing: it learns no dates, but passes through every part of a run.
TEXT = """
name: tiny
description: For the tests
data: {kind: generated_dates, training_count: 200, held_out_count: 12}
tokenizers:
  source: {kind: sentencepiece, model_type: char, vocabulary_size: 200}
  target: {kind: sentencepiece, model_type: char, vocabulary_size: 16, normalization: identity}
model:
  preset: bahdanau
  encoder: {embedding_dim: 8, units: 8}
  decoder: {embedding_dim: 8, units: 8, attention: {units: 8}}
training: {epochs: 2, batch_tokens: 1024, peak_learning_rate: 0.01, keep: average, average_last: 2}
evaluation: {metric: exact_match}
"""


def load(folder, *overrides):
    file = folder / "tiny.yaml"
    file.write_text(TEXT)
    return Recipe.load(str(file), [f"output={folder / 'run'}", *overrides])
