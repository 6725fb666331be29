"""A child's crash, hang or hunger is an error here."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from infconv import isolate
from infconv.errors import SourceError
from tests.helpers import children


def test_the_result_comes_back() -> None:
    result = isolate.call(lambda: {"a": np.arange(100_000)}, what="Work")
    assert result["a"].sum() == 4_999_950_000


def test_an_error_comes_back_as_it_is() -> None:
    def fail() -> None:
        raise SourceError("the fact", "the remedy")

    with pytest.raises(SourceError) as caught:
        isolate.call(fail, what="Work")
    assert (caught.value.message, caught.value.hint) == ("the fact", "the remedy")


def test_a_segfault_is_named() -> None:
    with pytest.raises(isolate.Crashed, match="Work crashed.*SIGSEGV"):
        isolate.call(lambda: os.kill(os.getpid(), signal.SIGSEGV), what="Work")


def test_a_hang_ends_at_the_time_out() -> None:
    start = time.monotonic()
    with pytest.raises(isolate.TimedOut, match=r"within 0\.2 s"):
        isolate.call(lambda: time.sleep(60), what="Work", timeout=0.2)
    assert time.monotonic() - start < 10


def test_a_kill_is_taken_for_memory() -> None:
    with pytest.raises(isolate.OutOfMemory):
        isolate.call(lambda: os.kill(os.getpid(), signal.SIGKILL), what="Work")


def test_the_memory_limit_holds() -> None:
    with pytest.raises(isolate.OutOfMemory):
        isolate.call(lambda: len(bytearray(8 << 30)), what="Work", memory_limit=4 << 30)


def test_no_child_is_left() -> None:
    before = children()
    with pytest.raises(isolate.TimedOut):
        isolate.call(lambda: time.sleep(60), what="Work", timeout=0.1)
    assert children() <= before
