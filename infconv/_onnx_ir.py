"""Import onnx_ir without sympy.

onnx_ir imports sympy (0.35 s, 25 MB) for arithmetic on symbolic dimensions, which infconv does on its own. When this
module is the first to import onnx_ir, its sympy part is loaded only if something really asks for it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Postponed(ModuleType):
    """Stands in for a module inside onnx_ir until one of its attributes is asked for.

    importlib's LazyLoader does not serve here: the import statement itself reads `__spec__`, which makes it load.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


_stand_ins = {name: _Postponed(name) for name in ("sympy", "onnx_ir._symbolic_shapes") if name not in sys.modules}
if "onnx_ir" not in sys.modules:
    sys.modules.update(_stand_ins)
    try:
        importlib.import_module("onnx_ir")  # it keeps the stand-ins, others do not
    finally:
        for _name, _module in _stand_ins.items():
            if sys.modules.get(_name) is _module:
                del sys.modules[_name]
