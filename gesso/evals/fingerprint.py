"""Fingerprints of what decides a judge's replies."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """16 hex digits over the `repr` of parts, in order."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def source_digest(*modules: str) -> str:
    """SHA-256 of the source of modules; of a package, of every file in it."""
    digest = hashlib.sha256()
    for name in modules:
        file = Path(str(importlib.import_module(name).__file__))
        files = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
        for source in files:
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages, by name."""
    return {name: importlib.metadata.version(name) for name in packages}
