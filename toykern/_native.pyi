"""The native module (csrc/bind/module.cpp) as type checkers see it."""

from typing import Any

def __getattr__(name: str) -> Any: ...
