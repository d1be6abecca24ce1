"""A TorchScript bundle is loaded only where somebody vouches for it, and torch only for one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import trust
from serving.engine import Engine, EngineSettings
from serving.trust import check_trust
from sparsecbm.bundle import Manifest, read_manifest
from sparsecbm.errors import BundleError, SetupError


def test_an_onnx_bundle_needs_no_trust(bundle: Path, manifest: Manifest) -> None:
    check_trust(bundle, manifest, False)


def test_an_untrusted_torchscript_bundle_is_refused(torch_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"its graphs are programs.* --trust-torchscript "):
        Engine.load(torch_bundle, EngineSettings(threads=1))


def test_a_trusted_torchscript_bundle_passes(torch_bundle: Path) -> None:
    check_trust(torch_bundle, read_manifest(torch_bundle), True)


def test_a_torchscript_bundle_without_torch_says_what_to_install(
    torch_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"torch isn't installed\. Install it with 'pip install torch'"):
        Engine.load(torch_bundle, EngineSettings(threads=1, trust_torchscript=True))


@pytest.mark.slow
@pytest.mark.parametrize(("trusted", "loaded"), [(False, "False"), (True, "True")])
def test_torch_is_imported_for_a_trusted_torchscript_bundle_alone(
    torch_bundle: Path, bundle: Path, trusted: bool, loaded: str
) -> None:
    code = (
        "import sys\n"
        "from serving.engine import Engine, EngineSettings\n"
        "from sparsecbm.errors import BundleError\n"
        f"Engine.load({str(bundle)!r}).predict(['fish'], ['tokens'])\n"
        "assert 'torch' not in sys.modules\n"
        f"try: Engine.load({str(torch_bundle)!r}, EngineSettings(trust_torchscript={trusted}))\n"
        "except BundleError: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{loaded}\n"), done.stderr
