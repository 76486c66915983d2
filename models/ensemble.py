"""Several translators that translate together."""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from attention_zoo.models.translator import Translator


@keras.saving.register_keras_serializable(package="attention_zoo")
class Ensemble(Translator):
    """Translators of any kind with the same tokenizers that vote on every token.

    At every position the next token's probability is the mean of the members':

        P(y_t | y_<t, x) = 1/M sum_m P_m(y_t | y_<t, x)

    It translates, scores, exports and saves like any `Translator`. The alignment is the mean of the members'
    alignments; there are no single heads to look at.

    Args:
        members: M translators whose tokenizers give the same ids.
        **kwargs: `name` and so on, see `keras.Model`.

    Raises:
        TypeError: If a member is no translator.
        ValueError: If there is no member, or their tokenizers differ.

    Example:
        >>> from attention_zoo.models import Translator, WhitespaceTokenizer
        >>> words = WhitespaceTokenizer(["good", "morning"])
        >>> members = [Translator.from_preset(name, words, words) for name in ("bahdanau", "luong_dot")]
        >>> isinstance(Ensemble(members).translate("good morning").text, str)
        True

    Reference:
        Sutskever, Vinyals and Le 2014, "Sequence to Sequence Learning with Neural Networks", section 3.6.
    """

    def __init__(self, members: Sequence[Translator], **kwargs: Any) -> None:
        members = list(members)
        _check(members)
        first = members[0]
        super().__init__(
            _Encoders([member.encoder for member in members], name="encoders"),
            _Decoders([member.decoder for member in members], name="decoders"),
            first.source_tokenizer,
            first.target_tokenizer,
            max_source_length=min(member.max_source_length for member in members),
            **kwargs,
        )
        self.members = members
        if all(member.built for member in members):
            self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates the weights of the members that have none yet."""
        for member in self.members:
            member.build()
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "members": [keras.saving.serialize_keras_object(member) for member in self.members],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Ensemble":
        """Builds the ensemble from its configuration."""
        members = [keras.saving.deserialize_keras_object(member) for member in config["members"]]
        return cls(members, name=config["name"])


class _Encoders(keras.layers.Layer):
    """The members' encoders as one; the mask is the same for all."""

    has_attention = False

    def __init__(self, members: list[keras.layers.Layer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.members = members
        self.vocabulary_size = members[0].vocabulary_size
        self.max_positions = _least(member.max_positions for member in members)
        self.built = True

    def call(self, source: Any, training: bool | None = None) -> dict[str, Any]:
        memories = [member(source, training=training) for member in self.members]
        return {"members": memories, "mask": memories[0]["mask"]}


class _Decoders(keras.layers.Layer):
    """The members' decoders as one, with what `models.search` needs."""

    head_parts = ()

    def __init__(self, members: list[keras.layers.Layer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.members = members
        self.vocabulary_size = members[0].vocabulary_size
        self.max_positions = _least(member.max_positions for member in members)
        self.has_attention = all(member.has_attention for member in members)
        self.built = True

    def call(
        self,
        target: Any,
        memory: dict[str, Any],
        training: bool | None = None,
        return_attention: bool = False,
    ) -> Any:
        results = [
            member(target, one, training=training, return_attention=True)
            for member, one in zip(self.members, memory["members"], strict=True)
        ]
        logits = _mean_log_probabilities([logits for logits, _ in results])
        if not return_attention:
            return logits
        return logits, self._alignments([attention for _, attention in results])

    def prepare(self, memory: dict[str, Any]) -> list[Any]:
        return [member.prepare(one) for member, one in zip(self.members, memory["members"], strict=True)]

    def initial_state(
        self,
        prepared: list[Any],
        hypotheses: int = 1,
        max_positions: Any = None,
        reordered: bool = True,
    ) -> list[Any]:
        return [
            member.initial_state(one, hypotheses, max_positions, reordered)
            for member, one in zip(self.members, prepared, strict=True)
        ]

    def step(self, token: Any, state: list[Any], prepared: list[Any]) -> tuple[Any, list[Any], Any]:
        logits, states, attention = zip(
            *(
                member.step(token, own, one)
                for member, own, one in zip(self.members, state, prepared, strict=True)
            ),
            strict=True,
        )
        return _mean_log_probabilities(logits), list(states), self._alignments(attention)

    def alignment(self, attention: Any) -> Any:
        return attention

    def heads(self, attention: Any) -> dict[str, Any]:
        return {}

    def _alignments(self, attention: Sequence[Any]) -> Any:
        """The mean of the members' alignments, (..., S), or None if one has none."""
        if not self.has_attention:
            return None
        alignments = [member.alignment(one) for member, one in zip(self.members, attention, strict=True)]
        return functools.reduce(operator.add, alignments) / len(alignments)


def _least(limits: Iterable[int | None]) -> int | None:
    """The smallest of the limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)


def _mean_log_probabilities(logits: Sequence[Any]) -> Any:
    """The logarithm of the mean of the distributions: M times (..., V) -> (..., V)."""
    stacked = ops.stack([ops.log_softmax(x) for x in logits])  # (M, ..., V)
    return ops.logsumexp(stacked, axis=0) - math.log(len(logits))


def _check(members: list[Any]) -> None:
    """Raises an error for what cannot vote together."""
    if not members:
        raise ValueError("Ensemble: expected at least one member, received none")
    for member in members:
        if not isinstance(member, Translator):
            raise TypeError(f"Ensemble: expected translators, received {type(member).__name__}")
    for side in ("source_tokenizer", "target_tokenizer"):
        first = getattr(members[0], side)
        for number, member in enumerate(members[1:], start=1):
            other = getattr(member, side)
            if not other.has_pieces_of(first):
                raise ValueError(
                    f"Ensemble: expected members with the same {side}, received number {number} with other "
                    "pieces than the first; train them with one tokenizer"
                )
