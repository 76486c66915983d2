"""Learning-rate schedules."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="attention_zoo")
class InverseSquareRootSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly for `warmup_steps` steps, then falls with the square root of the step.

        rate = peak_learning_rate * min(s / warmup_steps, sqrt(warmup_steps / s))

    where s counts optimizer steps from 1 (Keras counts from 0), so that the first step already learns.

    Args:
        peak_learning_rate: The highest rate, reached at step `warmup_steps`.
        warmup_steps: Number of steps of the rise, at least 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = InverseSquareRootSchedule(peak_learning_rate=0.5, warmup_steps=4)
        >>> [float(schedule(step)) for step in (0, 1, 3, 15)]
        [0.125, 0.25, 0.5, 0.25]

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 5.3 (see `noam`).
    """

    def __init__(self, peak_learning_rate: float, warmup_steps: int) -> None:
        if peak_learning_rate <= 0:
            raise ValueError(
                "InverseSquareRootSchedule: expected a positive peak_learning_rate, "
                f"received {peak_learning_rate}"
            )
        if warmup_steps < 1:
            raise ValueError(
                f"InverseSquareRootSchedule: expected warmup_steps of at least 1, received {warmup_steps}"
            )
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps

    @classmethod
    def noam(
        cls, model_dim: int, warmup_steps: int = 4000, factor: float = 1.0
    ) -> "InverseSquareRootSchedule":
        """The schedule of the Transformer paper.

            rate = factor * model_dim^-0.5 * min(s^-0.5, s * warmup_steps^-1.5)

        Args:
            model_dim: Width of the model.
            warmup_steps: Number of steps of the rise.
            factor: Multiplies the rate.

        Returns:
            The schedule.

        Example:
            >>> schedule = InverseSquareRootSchedule.noam(model_dim=100, warmup_steps=16)
            >>> round(float(schedule(15)), 6)
            0.025
        """
        return cls(factor * (model_dim * warmup_steps) ** -0.5, warmup_steps)

    def __call__(self, step: Any) -> Any:
        """The rate of the optimizer step after `step` others, a float32 scalar."""
        step = ops.cast(step, "float32") + 1.0
        warmup = float(self.warmup_steps)
        return self.peak_learning_rate * ops.minimum(step / warmup, ops.sqrt(warmup / step))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"peak_learning_rate": self.peak_learning_rate, "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable(package="attention_zoo")
class CooldownSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Follows another schedule, and brings the rate down to zero over the last steps of a training.

        rate = learning_rate(s) * min(1, (total_steps - s) / cooldown_steps)

    where s counts optimizer steps from 0, so that the last step has the last positive rate and any step
    beyond has a rate of zero.

    Args:
        learning_rate: A rate, or a schedule.
        cooldown_steps: Number of steps of the fall, at least 1.
        total_steps: Number of steps of the training, at least `cooldown_steps`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = CooldownSchedule(0.5, cooldown_steps=2, total_steps=6)
        >>> [float(schedule(step)) for step in (0, 4, 5, 6, 7)]
        [0.5, 0.5, 0.25, 0.0, 0.0]

    Reference:
        Zhai et al. 2022, "Scaling Vision Transformers", section 3.5 (linear cooldown).
    """

    def __init__(self, learning_rate: Any, cooldown_steps: int, total_steps: int) -> None:
        if isinstance(learning_rate, dict):  # as in a saved configuration
            learning_rate = keras.saving.deserialize_keras_object(learning_rate)
        if not callable(learning_rate) and learning_rate <= 0:
            raise ValueError(
                f"CooldownSchedule: expected a positive rate, or a schedule, received {learning_rate}"
            )
        if not 1 <= cooldown_steps <= total_steps:
            raise ValueError(
                "CooldownSchedule: expected cooldown_steps between 1 and total_steps, received "
                f"{cooldown_steps} and {total_steps}"
            )
        self.learning_rate = learning_rate
        self.cooldown_steps = cooldown_steps
        self.total_steps = total_steps

    def __call__(self, step: Any) -> Any:
        """The rate of the optimizer step after `step` others, a float32 scalar."""
        rate = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        remaining = (self.total_steps - ops.cast(step, "float32")) / self.cooldown_steps
        return rate * ops.clip(remaining, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        rate = self.learning_rate
        return {
            "learning_rate": keras.saving.serialize_keras_object(rate) if callable(rate) else rate,
            "cooldown_steps": self.cooldown_steps,
            "total_steps": self.total_steps,
        }
