"""Every error that a user can cause or meet, each with the HTTP status it is answered with.

SparseCBMError
├── InputError              422  a text, a concept or a value in a request
│   └── TooLargeError       413  a body, a text or a batch over its limit
├── UnauthorizedError       401  a request without a key that is known
├── ForbiddenError          403  a key whose role does not reach as far
├── NotFoundError           404  an id that the ledger doesn't hold
├── ConflictError           409  an Idempotency-Key that was sent before with another body
├── UnsupportedError        501  something that this bundle or installation can't do
├── UnavailableError        503  a part that is away for now (the ledger, the engine)
├── OverloadedError         429  more work than the queue holds
├── DeadlineError           504  an answer that would come later than the client waits
├── DataError                    a data file or its description
├── CheckpointError              a training checkpoint
├── BundleError                  an exported bundle
├── BackboneError                an architecture or its weights
├── ParityError                  an export that doesn't answer as its checkpoint does
├── TrainingError                training that can't go on
└── SetupError                   the machine or the settings (a taken port, a missing extra)
"""

from __future__ import annotations

from typing import Any


class SparseCBMError(Exception):
    """Base of all errors here: a sentence that says what was wrong and what would be right.

    Args:
        message: the sentence, safe to show to whoever made the request.
        detail: machine-readable facts (JSON values), if any.
    """

    type = "internal"
    status = 500

    def __init__(self, message: str, detail: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InputError(SparseCBMError):
    type, status = "invalid_input", 422


class TooLargeError(InputError):
    type, status = "too_large", 413


class UnauthorizedError(SparseCBMError):
    type, status = "unauthorized", 401


class ForbiddenError(SparseCBMError):
    type, status = "forbidden", 403


class NotFoundError(SparseCBMError):
    type, status = "not_found", 404


class ConflictError(SparseCBMError):
    type, status = "conflict", 409


class UnsupportedError(SparseCBMError):
    type, status = "unsupported", 501


class UnavailableError(SparseCBMError):
    type, status = "unavailable", 503


class OverloadedError(SparseCBMError):
    type, status = "overloaded", 429


class DeadlineError(SparseCBMError):
    type, status = "deadline_exceeded", 504


class DataError(SparseCBMError):
    type = "invalid_data"


class CheckpointError(SparseCBMError):
    type = "invalid_checkpoint"


class BundleError(SparseCBMError):
    type = "invalid_bundle"


class BackboneError(SparseCBMError):
    type = "invalid_backbone"


class ParityError(SparseCBMError):
    type = "parity"


class TrainingError(SparseCBMError):
    type = "training"


class SetupError(SparseCBMError):
    type = "setup"
