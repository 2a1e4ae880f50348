"""The key reference is the output of analysis/keys.py.

Run: pytest tests/test_keys.py
"""

import re

from analysis import keys
from onenet.config.compose import compose, to_dict
from onenet.config.schema import MODELS
from onenet.runs.identity import flatten


def test_the_page_is_up_to_date():
    """To update: python analysis/keys.py"""
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page()


def test_every_key_is_there():
    reference = set(re.findall(r"^\| `([\w.]+)` \|", keys.PAGE.read_text(), re.MULTILINE))
    for overrides in ([], *([f"detector={detector}"] for detector in MODELS)):
        names = {
            re.sub(r"(optim\.lr_factors)\..*", r"\1", key)
            for key in flatten(to_dict(compose(overrides)))
        }
        assert names <= reference
