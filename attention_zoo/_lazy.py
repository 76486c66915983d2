"""Public names that are imported when they are first used.

Importing TensorFlow takes seconds. A package whose face is lazy can be imported, listed and asked
for its version at once, and the command line can start without TensorFlow.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Builds `__getattr__`, `__dir__` and `__all__` for a package.

    Args:
        package: `__name__` of the package.
        exports: Public name -> module, relative to the package, that defines it; a name equal to
            its module is the module itself.

    Returns:
        The three objects, in that order.
    """

    def get_attribute(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{exports[name]}")
        return module if exports[name] == name else getattr(module, name)

    def directory() -> list[str]:
        return sorted(exports)

    return get_attribute, directory, sorted(exports)
