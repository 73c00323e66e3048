__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from .convert import similarity_parameters as similarity_parameters, to_nsl as to_nsl
    from .static import fold as fold
    from .weights import load as load

_HOMES = {"to_nsl": "convert", "similarity_parameters": "convert", "fold": "static", "load": "weights"}  # name -> its module, imported when it is asked for


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"nsl_repro.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nsl_repro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
