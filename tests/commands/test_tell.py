"""What commands print while they work: whoever stops reading it does not end the work."""

import os
import subprocess
import sys

import pytest

WORK = """
from moe_core.commands.sweep import Teller
teller = Teller({as_json})
for _ in range(3):
    teller.tell({{"event": "run", "run": "a", "state": "failed", "problem": "no data"}})
open("done", "w").close()
"""


@pytest.mark.parametrize(("stream", "as_json"), [("stdout", True), ("stderr", False)])
def test_a_sweep_goes_on_when_nobody_reads_it(stream, as_json, tmp_path):
    read, written = os.pipe()
    os.close(read)
    try:
        words = [sys.executable, "-c", WORK.format(as_json=as_json)]
        subprocess.run(
            words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()}, check=True, **{stream: written}
        )
    finally:
        os.close(written)
    assert (tmp_path / "done").exists()
