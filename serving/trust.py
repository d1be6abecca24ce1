"""Whether a bundle may be loaded here: TorchScript graphs are programs, and need torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sparsecbm.bundle import Manifest
from sparsecbm.errors import BundleError, SetupError


def check_trust(folder: Path, manifest: Manifest, trust_torchscript: bool) -> None:
    """Refuses a TorchScript bundle that nobody vouches for, or that nothing here can run.

    Raises:
        BundleError: the bundle is TorchScript and isn't trusted.
        SetupError: it is TorchScript and torch isn't installed.
    """
    if manifest.format != "torchscript":
        return
    if not trust_torchscript:
        raise BundleError(
            f"{folder} is a TorchScript bundle: its graphs are programs, which could do here whatever you can. If you "
            "trust whoever made it, say so with --trust-torchscript (EngineSettings(trust_torchscript=True)); "
            "else export the checkpoint as ONNX."
        )
    if find_spec("torch") is None:
        raise SetupError(
            f"{folder} is a TorchScript bundle, which torch runs, and torch isn't installed. Install it with "
            "'pip install torch', or export the checkpoint with --format onnx."
        )
