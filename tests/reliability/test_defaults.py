"""PyTorch's defaults are somebody else's: with another default precision or device, every public
function gives the results of the tensors that it was given."""

import copy

import pytest
import torch
from test_bad_input import GOOD, numbers


CALLS = {name: (function, copy.deepcopy(given)) for name, (function, given) in GOOD.items()}


@pytest.fixture(params=("float64", "meta"))
def default(request):
    "Of new tensors: double precision, or a device that is not where the tensors are."
    start = (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
    )
    yield start[request.param == "meta"]
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("name", CALLS)
def test_other_defaults_change_nothing(name, default):
    function, arguments = CALLS[name]
    arguments, again = copy.deepcopy(arguments), copy.deepcopy(arguments)
    torch.manual_seed(0)
    expected = numbers(function(**arguments))
    default()
    torch.manual_seed(0)
    found = numbers(function(**again))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
