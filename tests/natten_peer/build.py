"""Build NATTEN 0.14.6's own CPU kernels for this PyTorch, to be timed beside ours.

0.14.6 is the NATTEN that the published NAT and DiNAT checkpoints were trained with; as it is, it no longer compiles.
This fetches its source distribution from the package index, changes what a current compiler refuses, keeps of its
templates those for 7×7 windows, and compiles it. What its loops compute is not touched.

    python tests/natten_peer/build.py               # into build/natten, on as many threads as PyTorch has
    python tests/natten_peer/build.py --serial      # into build/natten-serial, on one, as its own setup.py leaves it
    PYTHONPATH=build/natten attnzoo bench ops neighborhood_attention --case 56×56
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

VERSION = "0.14.6"
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-mavx2", "-mfma", "-w", "-DAVX_INT", "-DCPU_CAPABILITY=AVX2")
DEFINES = ("-DCPU_CAPABILITY_AVX2", "-DTORCH_EXTENSION_NAME=_C", "-DTORCH_API_INCLUDE_EXTENSION_H")


def fetch(folder: Path) -> Path:
    """NATTEN's ``src/natten`` below ``folder``."""
    root = folder / f"natten-{VERSION}"
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", f"natten=={VERSION}", "--dest", str(folder)]
        subprocess.run(command, check=True)
        with tarfile.open(folder / f"natten-{VERSION}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return root / "src" / "natten"


def mended(name: str, text: str) -> str:
    """A source file that compiles, with fewer templates."""
    # Vectors are handed to these functions as temporaries.
    text = text.replace("(Vec& x, Vec& y)", "(Vec x, Vec y)")
    if name == "natten_cpu_commons.h":
        # A window of another size, or a dilation other than 1 and 8, takes the general template, as others do there.
        text = re.sub(r" +case (?:[2-7]|9|1\d): +\\\n +NAME<[^;]*; +\\\n +break; +\\\n", "", text)
        text = re.sub(r" +case (?:3|5|9|11|13): +\\\n +_IN_LAUNCH[^;]*; +\\\n +break; +\\\n", "", text)
    return text


def copy(source: Path, package: Path) -> Iterator[Path]:
    """The package at its new place; yields the files to compile."""
    for path in [*source.glob("*.py"), *source.glob("csrc/*.*"), *source.glob("csrc/cpu/*.*")]:
        target = package / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(mended(path.name, path.read_text(encoding="utf-8")), encoding="utf-8")
        if path.suffix == ".cpp":
            yield target


def build(package: Path, sources: list[Path], serial: bool) -> None:
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, *DEFINES, *(() if serial else ("-fopenmp",)), *(f"-I{path}" for path in includes)]
    objects = [path.with_suffix(".o") for path in sources]

    def compiled(pair: tuple[Path, Path]) -> None:
        subprocess.run(["g++", *flags, "-c", str(pair[0]), "-o", str(pair[1])], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, zip(sources, objects, strict=True)))
    libraries = [argument for path in cpp_extension.library_paths() for argument in (f"-L{path}", f"-Wl,-rpath,{path}")]
    libraries += ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10", *(() if serial else ("-fopenmp",))]
    module = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(module), *libraries], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serial", action="store_true", help="without OpenMP: on one thread, whatever is asked for")
    serial = parser.parse_args().serial
    root = Path("build") / ("natten-serial" if serial else "natten")
    package = root / "natten"
    build(package, list(copy(fetch(Path("build") / "natten-source"), package)), serial)
    metadata = root / f"natten-{VERSION}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: natten\nVersion: {VERSION}\n", encoding="utf-8")
    sys.stdout.write(f"natten {VERSION} for PyTorch {torch.__version__} is in {root}: set PYTHONPATH to it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
