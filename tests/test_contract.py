"""One contract for every registered method. A new method is tested here without a line being written."""

from __future__ import annotations

import pytest

from tokensieve import registry
from tokensieve.testing import parametrize_with_checks


@parametrize_with_checks(registry.methods())
def test_contract(check):
    check()


@pytest.mark.slow
@parametrize_with_checks(registry.methods(), slow=True)
def test_contract_of_many_tokens(check):
    check()
