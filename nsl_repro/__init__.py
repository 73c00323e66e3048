__version__ = "0.1.0"

_HOMES = {"to_nsl": "convert", "similarity_parameters": "convert", "fold": "static", "load": "weights"}  # name -> its module, imported when it is asked for


def __getattr__(name):
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"nsl_repro.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nsl_repro' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_HOMES]
