"""For the whole suite: no test asserts a time, so no example of a property has a deadline either; and no test may
have seen a secret in what was logged, answered or raised (canaries.py).

Here and not in `__init__.py`, because programs of this package are started as processes, and hypothesis takes its time.
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import canaries

pytest.register_assert_rewrite("tests.hardening")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
canaries.install()


@pytest.fixture(autouse=True)
def no_secret_is_told() -> Iterator[None]:
    """Secrets are for files, and for those who hold them."""
    canaries.taken()
    yield
    assert canaries.taken() == []
