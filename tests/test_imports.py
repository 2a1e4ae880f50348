"""block_import hides a module temporarily.

Run: pytest tests/test_imports.py
"""

import sys

import pytest

from onenet.system.imports import block_import


def test_a_hidden_module_is_not_found_and_comes_back(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with block_import("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    assert colorsys.__name__ == "colorsys"


def test_what_was_imported_before_stays():
    import json

    with block_import("json"):
        import json as again
    assert again is json
    assert sys.modules["json"] is json
