"""For the whole suite: no test asserts a time, so no example of a property has a deadline either.

Here and not in `__init__.py`, because programs of this package are started as processes, and hypothesis takes its time.
"""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
