"""Make independent things at the same time, each in a forked process; told and returned as if one came after another.

What an earlier thing tells its observers is passed on at once, what a later one tells when its turn comes: the output
is the same with any number of processes. A process is alone with its crash: the others go on.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import selectors
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from infconv.errors import InfconvError
from infconv.isolate import CAN_FORK, death, portable
from infconv.observe import Observers

if TYPE_CHECKING:
    from infconv.spec import PipelineSpec

T = TypeVar("T")
Work = Callable[[Observers], T]
_PR_SET_PDEATHSIG = 1
