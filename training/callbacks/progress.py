"""A live display of a training."""

import collections
import time
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

_WINDOW = 50  # steps over which speed is averaged: enough to meet all the batch shapes


class Progress(keras.callbacks.Callback):
    """Shows epoch, step, loss, token accuracy, tokens per second and time left.

    On a terminal a bar is redrawn in place. Anywhere else (a log file, a pipe) each epoch is one plain line.
    Speed counts real target tokens, not padding: they are the weights of the model's loss metric.

    Args:
        steps_per_epoch: Steps in one epoch, for the bar and the time left. None takes it from `fit` where
            the data set knows its length, and otherwise from the first epoch.
        console: Where to write; None means standard output.

    Example:
        ```python
        model.fit(batches, epochs=3, verbose=0, callbacks=[Progress()])
        ```
    """

    def __init__(self, steps_per_epoch: int | None = None, console: Console | None = None) -> None:
        super().__init__()
        self.steps_per_epoch = steps_per_epoch
        self.console = console or Console()
        self._bar: Bar | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the bar."""
        self.steps_per_epoch = self.steps_per_epoch or self.params.get("steps")
        self._recent = collections.deque(maxlen=_WINDOW)  # (seconds, tokens) of a step
        self._pause = 0.0  # seconds between two epochs: validation, saving
        self._compiled = False
        if self.console.is_terminal:
            # Where the terminal is narrow the bar itself shrinks, not the numbers.
            columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()]
            columns.append(TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)))
            self._bar = Bar(*columns, console=self.console, expand=True)
            self._task = self._bar.add_task("", total=self.steps_per_epoch, state="")
            self._bar.start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the bar anew."""
        now = time.perf_counter()
        if self._compiled:
            self._pause = now - self._step_end
        self._epoch, self._step, self._tokens = epoch, 0, 0.0
        self._epoch_start = self._step_end = now
        if self._bar:
            title = f"epoch {epoch + 1}/{self.params['epochs']}"
            self._bar.reset(self._task, total=self.steps_per_epoch, description=title, state="")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Says that the first step compiles."""
        if not self._compiled:
            self._show("compiling the first step...")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar."""
        now, tokens = time.perf_counter(), self._tokens_of_epoch()
        if self._compiled:  # the first step is mostly compilation and says nothing about speed
            self._recent.append((now - self._step_end, tokens - self._tokens))
        self._compiled, self._step_end, self._tokens, self._step = True, now, tokens, batch + 1
        if self._bar:
            seconds, recent_tokens = (sum(column) for column in zip((0.0, 0.0), *self._recent, strict=True))
            self._bar.update(self._task, completed=self._step)
            self._show(self._describe(logs or {}, recent_tokens, seconds))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Says why the bar stands still."""
        if self._bar:
            self._show("validating...")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Leaves one line about the epoch."""
        self.steps_per_epoch = self._step  # exact from now on, even if it was unknown
        summary = self._describe(logs or {}, self._tokens, self._step_end - self._epoch_start)
        self._print(f"epoch {epoch + 1}/{self.params['epochs']}: {summary}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back; call it when `fit` was interrupted."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _show(self, state: str) -> None:
        """Puts `state` on the bar, or on a line where there is none."""
        if self._bar:
            self._bar.update(self._task, state=state)
        else:
            self._print(state)

    def _print(self, line: str) -> None:
        # Neither coloured nor wrapped, so that a log file stays plain.
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _tokens_of_epoch(self) -> float:
        loss = next(metric for metric in self.model.metrics if metric.name == "loss")
        return float(loss.count.numpy())

    def _describe(self, logs: dict[str, Any], tokens: float, seconds: float) -> str:
        """Returns such as 'loss 1.23, token accuracy 0.56, 12,345 tokens/s, 1:23 left'."""
        names = ["loss", "token_accuracy", *(name for name in logs if name.startswith("val_"))]
        parts = [f"{_readable(name)} {float(logs[name]):.3f}" for name in names if name in logs]
        if seconds > 0:
            parts.append(f"{tokens / seconds:,.0f} tokens/s")
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{clock(left)} left")
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        if not self.steps_per_epoch or not self._recent:
            return None
        seconds_per_step = sum(seconds for seconds, _ in self._recent) / len(self._recent)
        epochs_left = self.params["epochs"] - self._epoch - 1
        steps_left = self.steps_per_epoch - self._step + epochs_left * self.steps_per_epoch
        return steps_left * seconds_per_step + epochs_left * self._pause


def _readable(name: str) -> str:
    return name.replace("val_", "validation ").replace("_", " ")


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any, as people write them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
