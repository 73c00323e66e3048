__version__ = "0.2.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from .data.photos import photos_from_folder as photos_from_folder
    from .nsl.attention import GlobalNeuralSimilarity as GlobalNeuralSimilarity
    from .nsl.convert import parameter_groups as parameter_groups
    from .nsl.convert import similarity_parameters as similarity_parameters
    from .nsl.convert import to_nsl as to_nsl
    from .nsl.dynamic import DynamicNSLConv2d as DynamicNSLConv2d
    from .nsl.dynamic import dynamic_conv2d as dynamic_conv2d
    from .nsl.sphere import SphereConv2d as SphereConv2d
    from .nsl.static import StaticNSLConv2d as StaticNSLConv2d
    from .nsl.folding import fold as fold
    from .pddm.loss import DoubleHeaderHingeLoss as DoubleHeaderHingeLoss
    from .pddm.mining import hard_quadruplets as hard_quadruplets
    from .pddm.plugins import PDDMLoss as PDDMLoss
    from .pddm.unit import PDDM as PDDM
    from .training.retrieval import evaluate_retrieval as evaluate_retrieval
    from .training.weights import list_models as list_models
    from .training.weights import load as load
    from .training.weights import to_onnx as to_onnx

_HOMES = {  # name -> its module, imported when it is asked for
    "photos_from_folder": "data.photos",
    "GlobalNeuralSimilarity": "nsl.attention",
    "parameter_groups": "nsl.convert",
    "similarity_parameters": "nsl.convert",
    "to_nsl": "nsl.convert",
    "DynamicNSLConv2d": "nsl.dynamic",
    "dynamic_conv2d": "nsl.dynamic",
    "SphereConv2d": "nsl.sphere",
    "StaticNSLConv2d": "nsl.static",
    "fold": "nsl.folding",
    "DoubleHeaderHingeLoss": "pddm.loss",
    "hard_quadruplets": "pddm.mining",
    "PDDMLoss": "pddm.plugins",
    "PDDM": "pddm.unit",
    "evaluate_retrieval": "training.retrieval",
    "list_models": "training.weights",
    "load": "training.weights",
    "to_onnx": "training.weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"nsl_repro.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nsl_repro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
