from __future__ import annotations

from pathlib import Path

import pytest

from model_store.machine import describe_machine, parse_cpuinfo, parse_sysctl, processor, usable_cores

X86 = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_vnni sse4_2

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
MAC = """machdep.cpu.brand_string: Apple M2
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 0
noise
"""


def test_linux_on_x86_gives_the_first_processors_name_and_the_flags_that_matter() -> None:
    assert parse_cpuinfo(X86) == ("AMD EPYC", ("avx2", "avx512f", "avx512_vnni"))


def test_linux_on_arm_gives_implementer_and_part() -> None:
    assert parse_cpuinfo(ARM) == ("arm64 implementer 0x41 part 0xd40", ("asimddp", "i8mm", "bf16"))


def test_an_empty_cpuinfo_gives_nothing() -> None:
    assert parse_cpuinfo("") == ("", ())


def test_macos_gives_the_brand_and_the_flags_that_are_on() -> None:
    assert parse_sysctl(MAC) == ("Apple M2", ("asimddp", "i8mm"))


@pytest.mark.parametrize(("content", "cores"), [("50000 100000\n", 0.5), ("max 100000\n", None), (None, None)])
def test_a_containers_limit_lowers_the_usable_cores(tmp_path: Path, content: str | None, cores: float | None) -> None:
    file = tmp_path / "cpu.max"
    if content is not None:
        file.write_text(content)
    assert usable_cores(file) == (cores or usable_cores(tmp_path / "none"))


def test_this_machine_is_described_in_one_line() -> None:
    machine = describe_machine()
    assert machine.cores >= machine.usable_cores > 0
    assert machine.memory_bytes > 0
    assert machine.onnxruntime is not None
    assert machine.cpu in str(machine)
    assert "\n" not in str(machine)


def test_the_processor_has_a_name() -> None:
    assert processor()[0]
