"""How a library looks to build systems: CMake, and for microcontrollers Arduino and Zephyr, all over one ``src/``."""

from __future__ import annotations

from compress.export.library import bare_metal, elf, rendering, toolchain
from compress.export.library.c_driver import Driver


def files(driver: Driver, kernels: bytes, golden: bool, portable: bool) -> dict[str, bytes]:
    """The files by their paths in the library's folder.

    Args:
        driver: what the C comes from.
        kernels: the object file of the kernels.
        golden: whether there are golden inputs, so that the programs which run them make sense.
        portable: whether the kernels are there in C too.
    """
    name = driver.interface.name
    bare = not toolchain.hosted(driver.isa)
    words = {**driver.words, "golden": golden, "portable": portable, "bare": bare, "flags": _flags(driver)}
    made = {"CMakeLists.txt": "CMakeLists.txt", "README.md": "README.md"}
    if bare:
        made |= {"library.properties": "library.properties"}
        made |= {f"zephyr/{file}": f"zephyr_{file}" for file in ("module.yml", "CMakeLists.txt", "Kconfig")}
        if golden:
            made["examples/golden/golden.ino"] = "golden.ino"
            made |= {f"zephyr/golden/{file}": f"zephyr_golden_{file}" for file in ("CMakeLists.txt", "prj.conf")}
    found = {path: rendering.render(template, **words) for path, template in made.items()}
    if bare:
        board = bare_metal.BOARDS.get(driver.isa.cpu)
        if golden and board is not None:
            stack = max(bare_metal.STACK_BYTES, 2 * driver.stack_bytes)
            example = bare_metal.example(board, driver.words, stack)
            found |= {f"emulator/{file}": text.encode() for file, text in example.items()}
        archive = elf.archive([("kernels.o", kernels)])
        found[f"src/{driver.isa.cpu}/lib{name}_kernels.a"] = archive
    return found


def _flags(driver: Driver) -> str:
    """Compiler flags that a program for the device needs, as the README gives them."""
    if driver.isa.family in ("cortex-m", "riscv"):
        return " ".join(toolchain.gcc_flags(driver.isa))
    return ""


__all__ = ["files"]
