"""Compiles loadgen/_fastlane.c where there is a compiler; without one Python does its work."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("loadgen", "_fastlane.c")
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC"]


class CustomBuildHook(BuildHookInterface[Any]):
    """Called by hatchling before a wheel is packed or a checkout is installed editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the compiled module beside its source, and into the wheel."""
        del version
        made = SOURCE.with_suffix(str(sysconfig.get_config_var("EXT_SUFFIX")))
        problem = compiled(Path(self.root), made)
        if problem is not None:
            self.app.display_warning(f"The fast lane was not compiled: {problem}")
            return
        build_data["artifacts"].append(made.as_posix())
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compiled(root: Path, made: Path, *flags: str) -> str | None:
    """Compile ``SOURCE`` under ``root`` to ``made``; why it could not be done, else ``None``."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    (root / made).unlink(missing_ok=True)  # no older one may stand in for it
    command = [*compiler, *FLAGS, *flags, f"-I{sysconfig.get_path('include')}", str(SOURCE)]
    try:
        done = subprocess.run(
            [*command, "-o", str(made)], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"{compiler[0]}: {error.strerror}"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[0]


if __name__ == "__main__":
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    print(compiled(Path(__file__).parent, SOURCE.with_suffix(suffix)) or "compiled")
