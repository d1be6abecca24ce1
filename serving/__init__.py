"""From a bundle to answers over HTTP. Serving an ONNX bundle loads neither torch nor transformers."""

import os

# ONNX Runtime's Linux wheels report to their makers unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
