"""One contract for every registered method. A new method is tested here without a line being written."""

from __future__ import annotations

import pytest

from tokensieve.core import method_registry
from tokensieve.testing import parametrize_with_checks


@parametrize_with_checks(method_registry.list_methods())
def test_contract(check):
    check()


@pytest.mark.slow
@parametrize_with_checks(method_registry.list_methods(), slow=True)
def test_contract_of_many_tokens(check):
    check()
