"""What is added to a base and trained: one module a method, so that adding one leaves the others
cached.

Each module has a `METHOD`. It is found by `adapter.method`, and `dvc.yaml` names exactly that
module among the dependencies of the stages that use an adapter.
"""

from __future__ import annotations

from importlib import import_module

from bitrank.method import Method


def of(name: str) -> Method:
    method: Method = import_module(f"bitrank.methods.{name}").METHOD
    return method
