"""How fast it is: our answers beside the passes that they replace, measured in one run."""

import os

# ONNX Runtime's Linux wheels report to their makers unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
