__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from .attention import GlobalNeuralSimilarity as GlobalNeuralSimilarity
    from .convert import similarity_parameters as similarity_parameters, to_nsl as to_nsl
    from .dynamic import DynamicNSLConv2d as DynamicNSLConv2d, dynamic_conv2d as dynamic_conv2d
    from .pddm import PDDM as PDDM, DoubleHeaderHingeLoss as DoubleHeaderHingeLoss, hard_quadruplets as hard_quadruplets
    from .plugins import PDDMLoss as PDDMLoss
    from .retrieval import evaluate_retrieval as evaluate_retrieval
    from .sphere import SphereConv2d as SphereConv2d
    from .static import StaticNSLConv2d as StaticNSLConv2d, fold as fold
    from .weights import load as load

_HOMES = {  # name -> its module, imported when it is asked for
    "GlobalNeuralSimilarity": "attention",
    "similarity_parameters": "convert", "to_nsl": "convert",
    "DynamicNSLConv2d": "dynamic", "dynamic_conv2d": "dynamic",
    "PDDM": "pddm", "DoubleHeaderHingeLoss": "pddm", "hard_quadruplets": "pddm",
    "PDDMLoss": "plugins",
    "evaluate_retrieval": "retrieval",
    "SphereConv2d": "sphere",
    "StaticNSLConv2d": "static", "fold": "static",
    "load": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"nsl_repro.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nsl_repro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
