from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from service.allocator import give_back, tune_allocator

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this switch")


@of_glibc
@pytest.mark.parametrize("tuned", [True, False])
def test_freed_blocks_go_back_to_the_system(tuned: bool) -> None:
    """Blocks of 8 MiB that are freed while one above them stays: without the switch they stay in the heap."""
    program = """if True:
        import sys
        import psutil
        from service.allocator import tune_allocator
        assert sys.argv[1] == "False" or tune_allocator()
        bytearray(30 * 2**20)  # glibc raises its threshold when this is freed
        blocks = [bytes(8 * 2**20) + b"x" for _ in range(20)]
        del blocks[:-1]
        print(psutil.Process().memory_info().rss)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tuned)], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 130 * 2**20) == tuned


@of_glibc
@pytest.mark.parametrize("asked", [True, False])
def test_what_small_blocks_left_goes_back_to_the_system(asked: bool) -> None:
    """60 MB of small blocks with one above them that stays."""
    program = """if True:
        import sys
        import psutil
        from service.allocator import give_back
        blocks = [bytes(6_000) for _ in range(10_000)]
        del blocks[:-1]
        assert sys.argv[1] == "False" or give_back()
        print(psutil.Process().memory_info().rss)
    """
    done = subprocess.run([sys.executable, "-c", program, str(asked)], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 50 * 2**20) == asked


def test_a_c_library_without_the_switch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not tune_allocator()
    assert not give_back()
