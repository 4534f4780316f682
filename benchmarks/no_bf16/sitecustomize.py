"""OpenVINO as on a processor without bf16 arithmetic, in each Python that has this folder on its path.

Whoever asks is told that there is none, and graphs are compiled in fp32 unless they ask for something else. The
instructions themselves cannot be hidden: OpenVINO reads them from the processor, whatever ONEDNN_MAX_CPU_ISA says.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def without_bf16(openvino: Any) -> None:
    """Change OpenVINO's ``Core``."""
    core = openvino.Core
    get_property, compile_model = core.get_property, core.compile_model

    def get(self: Any, *names: Any) -> Any:
        found = get_property(self, *names)
        return [each for each in found if each != "BF16"] if "OPTIMIZATION_CAPABILITIES" in names else found

    def compile_in_fp32(self: Any, model: Any, device_name: Any = None, config: Any = None, **more: Any) -> Any:
        settings = {"INFERENCE_PRECISION_HINT": "f32"} | dict(config or {})
        return compile_model(self, model, device_name, settings, **more)

    core.get_property, core.compile_model = get, compile_in_fp32


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the real package, and changes it once it is there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "openvino":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            self._loader = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        without_bf16(module)


sys.meta_path.insert(0, _AfterImport())
