"""The command line: parse, call, print. No logic; heavy imports happen inside the verbs.

A file here without a leading underscore holds verbs: it is found by its name, and adds its
commands to `app`.
"""

from __future__ import annotations

import errno
import logging
import os
import pkgutil
import sys
import warnings
from importlib import import_module

from gesso.cli._app import app
from gesso.types import GessoError

UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST),
)

CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that tell at import, where torchao is installed, what it does without on a processor."""

for _file in pkgutil.iter_modules(__path__):
    if not _file.name.startswith("_"):
        import_module(f"{__name__}.{_file.name}")


def main() -> None:
    """Entry point: bad input is one sentence on stderr and exit code 2, never a traceback."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ frames when a process is lost
    warnings.showwarning = lambda message, *_: print(f"gesso: {message}", file=sys.stderr)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app()
    except GessoError as e:
        print(f"gesso: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        where = f" at {e.filename}" if e.filename else ""
        print(
            f"gesso: Could not write{where}: {e.strerror}; free room or choose another place.",
            file=sys.stderr,
        )
        sys.exit(2)
