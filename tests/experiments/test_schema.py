"""Signatures read from source agree with those Python sees."""

from __future__ import annotations

import inspect

import pytest

from experiments import schema
from experiments.errors import UsageError
from experiments.tasks import task_named

FIXED_CLASSES = task_named("retrieval").fixed_classes
CLASSES = [
    "lightning_modules.CAPTURE",
    "lightning_modules.ImageOnly",
    "lightning_modules.TextOnly",
    "datamodules.Product1M",
    *FIXED_CLASSES.values(),
]


@pytest.mark.parametrize("class_path", CLASSES)
def test_names_and_defaults_are_the_constructors(class_path: str) -> None:
    import importlib

    module, name = class_path.rsplit(".", 1)
    parameters = dict(inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters)
    parameters.pop("self")
    read = schema.signature(class_path)
    assert list(read) == list(parameters)
    for key, parameter in parameters.items():
        if read[key].default is not schema.UNKNOWN:
            assert read[key].default == parameter.default, key
        else:
            assert parameter.default is inspect.Parameter.empty or not isinstance(parameter.default, (int, str)), key


def test_an_unknown_class_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"lightning_modules\.CAPTUR"):
        schema.signature("lightning_modules.CAPTUR")


def test_what_equals_the_default_does_not_differ() -> None:
    path = "lightning_modules.CAPTURE"
    values = {"lr": 1e-4, "objectives": ["mlm", "mrm", "clr"], "width": 768, "dropout": 0.2}
    assert schema.differing(values, path) == {"dropout": 0.2}
    assert schema.differing({"ks": (10, 50, 100)}, FIXED_CLASSES["evaluation"]) == {}
