"""What is freed is kept, where the C library is GNU's and the environment does not say otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from attnzoo.tools import allocator, diffuse, eval, train

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is the GNU C library's")

_PROGRAM = """
import resource, runpy, sys
import numpy

# Without the package, whose import takes seconds.
keep_freed_memory = runpy.run_path(sys.argv[3])["keep_freed_memory"]

if sys.argv[1] != "left alone":
    keep_freed_memory(largest=sys.argv[1] == "all")

def fill():
    blocks = [numpy.ones(int(sys.argv[2]) << 17) for _ in range(6)]

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode, megabytes, **environment):
    # Kept pages would be huge ones under some systems' settings, and the counts small ones.
    environment = {"PATH": os.environ["PATH"], "NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    command = [sys.executable, "-c", _PROGRAM, mode, str(megabytes), allocator.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@only_glibc
@pytest.mark.parametrize(("mode", "megabytes"), [("all", 64), ("all", 16), ("but the largest", 16)])
def test_memory_is_not_fresh_again(mode, megabytes):
    assert faults(mode, megabytes) < 0.05 * faults("left alone", megabytes)


@only_glibc
def test_the_largest_blocks_can_be_left_alone():
    assert faults("but the largest", 64) > 0.9 * faults("left alone", 64)


@only_glibc
@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"])
def test_the_environment_has_the_last_word(name):
    assert faults("all", 64, **{name: "1000000"}) > 0.9 * faults("left alone", 64)


def test_another_c_library_is_left_alone(monkeypatch):
    for name in allocator._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    opened = []
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: opened.append(name) or object())
    allocator.keep_freed_memory()
    assert opened == [None]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(eval, ["van_b0", "--data", "digits"]), (train, ["dinat_nano_digits"]), (diffuse, ["pipe", "--prompt", "a cat"])],
)
def test_long_commands_keep_it(command, arguments, monkeypatch):
    class Called(Exception):
        pass

    def called():
        raise Called

    assert command.keep_freed_memory is allocator.keep_freed_memory
    monkeypatch.setattr(command, "keep_freed_memory", called)
    from attnzoo.tools.main import build_parser

    name = command.__name__.rpartition(".")[2]
    with pytest.raises(Called):
        command.run(build_parser(name).parse_args([name, *arguments]))
