from __future__ import annotations

import os

from httppubsubserver.randomness import random_bytes


def test_nothing_is_given_out_twice() -> None:
    given = [random_bytes(18) for _ in range(5000)]
    assert len(set(given)) == 5000
    assert {len(each) for each in given} == {18}


def test_a_child_draws_its_own() -> None:
    random_bytes(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, random_bytes(16))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 16) != random_bytes(16)
    os.close(reader)
    os.close(writer)
