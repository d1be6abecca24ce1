"""SparseCBM: one language-model backbone, one sparse subnetwork per human concept.

The method (Tan, Chen, Zhang, Liu, AAAI 2024, arXiv 2312.15033) and the bundle's schema. Importing
this package, ``sparsecbm.bundle`` or ``sparsecbm.errors`` loads no torch.
"""

__version__ = "0.1.0"
