"""What a measurement was made on: the processor, the instructions that matter for int8, memory and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

# The instructions that decide which int8 and float kernels ONNX Runtime takes.
X86_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimddp", "i8mm", "sve", "bf16")
FLAGS = X86_FLAGS + ARM_FLAGS
_SYSCTL_FLAGS = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_CPUINFO = Path("/proc/cpuinfo")


class Machine(BaseModel):
    """One machine's description."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    cores: int
    usable_cores: float
    memory_bytes: int
    system: str
    python: str
    onnxruntime: str | None

    def __str__(self) -> str:
        flags = " ".join(self.flags) or "none of the instructions that matter"
        return (
            f"{self.cpu} ({self.architecture}; {flags}), {self.usable_cores:g} of {self.cores} cores,"
            f" {self.memory_bytes / 2**30:.0f} GiB, {self.system}, Python {self.python},"
            f" ONNX Runtime {self.onnxruntime or 'not installed'}"
        )


def processor() -> tuple[str, tuple[str, ...]]:
    """This machine's processor in words, and the flags that matter (Linux and macOS, x86-64 and arm64)."""
    if _CPUINFO.exists():
        cpu, flags = parse_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    elif platform.system() == "Darwin":
        answer = subprocess.run(["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, timeout=10, check=False)
        cpu, flags = parse_sysctl(answer.stdout)
    else:
        cpu, flags = "", ()
    return cpu or platform.processor() or platform.machine() or "unknown processor", flags


def describe_machine() -> Machine:
    """Describe the machine that this runs on."""
    cpu, flags = processor()
    return Machine(
        cpu=cpu,
        architecture=platform.machine(),
        flags=flags,
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(terse=True),
        python=platform.python_version(),
        onnxruntime=_runtime_version(),
    )


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The processor's name and the flags that matter, from Linux' /proc/cpuinfo; arm64 gives no name there."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name", "")
    if not name and "CPU part" in fields:
        name = f"arm64 implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return name, tuple(flag for flag in FLAGS if flag in present)


def parse_sysctl(text: str) -> tuple[str, tuple[str, ...]]:
    """The processor's name and the flags that matter, from macOS' `sysctl -a`."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    present = {flag for key, flag in _SYSCTL_FLAGS.items() if fields.get(key) == "1"}
    return fields.get("machdep.cpu.brand_string", ""), tuple(flag for flag in FLAGS if flag in present)


def usable_cores(limit_file: Path = _CGROUP_LIMIT) -> float:
    """Cores that this process may use: its affinity, and a container's CPU limit where there is one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit_file.read_text(encoding="ascii").split()
        return min(affinity, int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no limit
        return affinity


def _runtime_version() -> str | None:
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
