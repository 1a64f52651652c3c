"""The module behind ``python -m NAME``: of a package, its ``__main__``."""

import importlib
import importlib.util


def module_of(name):
    found = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(found, "__path__") else found
