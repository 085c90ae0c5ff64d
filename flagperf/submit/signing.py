"""Ed25519 signatures of a bundle's manifest, by `cryptography` where it's installed."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

from flagperf.errors import FlagPerfError, Unavailable, UsageError
from flagperf.schema.submission import Signature

INSTALL = "Get it: pip install 'flagperf[submit]'"


def keygen(private: Path) -> tuple[Path, str]:
    """Make a key pair in FILE and FILE.pub; return the public file and key. Existing files are never overwritten."""
    keys = _library()
    key = keys.Ed25519PrivateKey.generate()
    public = private.with_name(f"{private.name}.pub")
    told = key.public_key().public_bytes_raw().hex()
    for path, content, mode in ((private, key.private_bytes_raw().hex(), 0o600), (public, told, 0o644)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise UsageError(f"{path} is there already; a key is never overwritten.", "Name another file.") from None
        except OSError as error:
            raise FlagPerfError(f"Can't write {path}: {error.strerror}.") from error
        with os.fdopen(descriptor, "w") as file:
            file.write(content + "\n")
    return public, told


def read_key(path: Path) -> str:
    """Return the key in a file that `keygen` made, 64 lower-case hex digits."""
    try:
        content = path.read_bytes()[:200].decode("ascii", "replace").strip()
    except OSError as error:
        raise UsageError(f"The key {path} can't be read: {error.strerror}.") from error
    if not re.fullmatch("[0-9a-f]{64}", content):
        raise UsageError(
            f"{path} holds no Ed25519 key.", "Make one: flagperf submit keygen KEY; it writes KEY, KEY.pub"
        )
    return content


def sign(data: bytes, private: str) -> Signature:
    """Sign with a private key."""
    key = _library().Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    public = key.public_key().public_bytes_raw().hex()
    return Signature(algorithm="ed25519", public_key=public, signature=key.sign(data).hex())


def verified(data: bytes, signature: Signature) -> bool:
    """Whether a signature is good for the key that it names."""
    library = _library()
    from cryptography.exceptions import InvalidSignature

    if not (re.fullmatch("[0-9a-f]{64}", signature.public_key) and re.fullmatch("[0-9a-f]{128}", signature.signature)):
        return False
    try:
        key = library.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def available() -> bool:
    """Whether signatures can be made and checked here."""
    return importlib.util.find_spec("cryptography") is not None


def _library() -> ModuleType:
    if not available():
        raise Unavailable("Signatures need the package cryptography, which isn't installed.", INSTALL)
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519
