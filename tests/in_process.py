"""A command without a process of its own: the same words, status and streams, and no wait for an import of torch."""

import contextlib
import io
import subprocess

from moe_core.__main__ import main


def moe(*words: str) -> subprocess.CompletedProcess[str]:
    """What `python -m moe_core` answers. Of bad usage argparse makes a SystemExit, as it does there."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(words))
        except SystemExit as exit:
            status = int(exit.code or 0)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
