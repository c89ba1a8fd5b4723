"""Memory that is freed and asked for again, as the operating system counts it in pages handed out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PAGES = (100 << 20) // os.sysconf("SC_PAGESIZE")
# Fill a block of 100 MiB twice; pages that the system gave for the second one.
FILL = """
import ctypes, resource
libc, size = ctypes.CDLL(None), 100 << 20
libc.malloc.restype = ctypes.c_void_p
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(block, 1, ctypes.c_size_t(size))
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""
KEEP = "from textleak.allocator import keep_memory; keep_memory()"
OUTSIDE = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")


def said(code: str, **outside: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE} | outside
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


@pytest.fixture(scope="module")
def handed_back() -> None:
    """A system that takes memory back at once, and gives it again page by page."""
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        pytest.skip("the C library isn't glibc")
    if int(said(FILL)) < PAGES // 2:
        pytest.skip("the system has large pages for every program, or another allocator")


@pytest.mark.usefixtures("handed_back")
def test_a_block_that_was_freed_is_used_again() -> None:
    assert int(said(KEEP + FILL)) < PAGES // 100


@pytest.mark.usefixtures("handed_back")
def test_what_was_set_from_outside_stays() -> None:
    assert int(said(KEEP + FILL, MALLOC_MMAP_THRESHOLD_="1048576")) >= PAGES // 2
    asked = f"{KEEP}; import os; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    assert said(asked, THP_MEM_ALLOC_ENABLE="0") == "0"
    assert said(asked) == "1"


NO_NAME = "import os; os.confstr = lambda name: int(name)"  # a ValueError
REFUSED = "import os; os.confstr = lambda name: os.stat('no/such/file')"  # an OSError, as musl's ends in


@pytest.mark.parametrize("missing", ["import os; del os.confstr", NO_NAME, REFUSED])
def test_other_c_libraries_are_left_alone(missing: str) -> None:
    assert said(f"{missing}; import ctypes; ctypes.CDLL = None; {KEEP}; print('done')") == "done"


@pytest.mark.parametrize(
    ("most", "asked"),
    [
        (2**31, [(-3, 2**28), (-1, 2**31 - 1)]),
        (2**25, [(-3, 2**28), (-3, 2**25), (-1, 2**31 - 1)]),
        (0, [(-3, 2**28), (-3, 2**25)]),
    ],
)
def test_an_older_glibc_is_asked_for_what_it_takes(most: int, asked: list[tuple[int, int]]) -> None:
    code = f"""
import ctypes, os, types
os.confstr = lambda name: "glibc 2"
asked = []
def mallopt(parameter, value):
    asked.append((parameter, value))
    return int(parameter == -1 or value <= {most})
ctypes.CDLL = lambda name: types.SimpleNamespace(mallopt=mallopt)
{KEEP}
print(asked)
"""
    assert said(code) == str(asked)


def test_the_program_keeps_memory() -> None:
    spy = "from textleak import allocator, cli; allocator.keep_memory = lambda: print('kept'); "
    assert said(f"{spy}import sys; sys.argv = ['textleak', '--version']; cli.main()").startswith("kept\n")
