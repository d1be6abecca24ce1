"""From a training checkpoint to a servable bundle."""
