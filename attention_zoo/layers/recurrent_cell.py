"""The recurrent cells by name."""

from attention_zoo.layers.gru_cell import GRUCell
from attention_zoo.layers.lstm_cell import LSTMCell

CELLS = {"gru": GRUCell, "lstm": LSTMCell}


def recurrent_cell(cell: str, units: int, *, name: str, dtype: object = None) -> GRUCell | LSTMCell:
    """Makes the cell called `cell`, "gru" or "lstm".

    Raises:
        ValueError: If there is no cell of that name, or `units` is not positive.
    """
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {sorted(CELLS)}, received {cell!r}")
    return CELLS[cell](units, name=name, dtype=dtype)
