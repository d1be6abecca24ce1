"""From a bundle to answers over HTTP. Serving an ONNX bundle loads neither torch nor transformers."""
