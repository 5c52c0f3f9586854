"""Tests of zstd on the Python versions that have it in the standard library, and on those that have not."""

import subprocess
import sys
from pathlib import Path

import cdi

PYTHON_3_14 = """
import sys, types
if sys.version_info < (3, 14):
    from backports import zstd
    sys.modules["compression"] = types.ModuleType("compression")
    sys.modules["compression"].zstd = sys.modules["compression.zstd"] = zstd
    sys.modules["backports"] = sys.modules["backports.zstd"] = None
    import cdi.transfer.pipeline.mapped_stream, cdi.image.bounds_check
    import cdi.transfer.pipeline.cluster_writer
    sys.modules.pop("cdi.image.zstd", None)
    sys.version_info = (3, 14, 0, "final", 0)
from cdi.transfer.pipeline.cluster_writer import inflate_zstd
from compression import zstd
assert inflate_zstd(memoryview(zstd.compress(bytes(65536))), 65536) == bytes(65536)
"""


def test_clusters_are_inflated_with_the_module_of_the_standard_library():
    done = subprocess.run([sys.executable, "-c", PYTHON_3_14], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_module_chooses_the_library():
    package = Path(cdi.__file__).parent
    found = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if "backports" in path.read_text()]
    assert found == ["image/zstd.py"]
