"""A server and a TorchScript bundle, which is a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.conftest import Launcher
from tests.server.test_start import assert_refused


def test_a_torchscript_bundle_that_is_not_trusted_is_refused(launcher: Launcher, torch_bundle: Path) -> None:
    assert_refused(launcher.launch(torch_bundle), "its graphs are programs", "--trust-torchscript")


@pytest.mark.slow
def test_a_trusted_torchscript_bundle_is_served(launcher: Launcher, torch_bundle: Path) -> None:
    server = launcher.start(torch_bundle, "--trust-torchscript")
    [answer] = server.predict("the pasta was tasty , the waiter was rude .")["predictions"]
    assert {concept["name"]: concept["value"] for concept in answer["concepts"]} == {
        "food": "Positive",
        "service": "Negative",
        "noise": "unknown",
    }
    assert server.intervene("the pasta was tasty .", "food", "Negative", level="mask")["edits"]
