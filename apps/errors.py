"""The one exception tree: code, exit status, message (what happened to what), hint (what to type next).

One class is one row of the table in docs/guides/errors.md. Statuses follow `sysexits.h` where it has one.
"""

from typing import Any

from processor_runtime import codes


class OperationError(Exception):
    """What a user can act on. The class carries the code and the exit status, the instance the words.

    Raised as itself it is a bug of ours: ERR_INTERNAL.
    """

    code = codes.INTERNAL
    exit_status = 70

    def __init__(self, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.details = message, hint, details or {}
        self.envelope: dict[str, Any] = {}  # set by a run: what is known of the execution

    def words(self) -> dict[str, Any]:
        """The `error` object of an error document or an error envelope."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}

    def document(self) -> dict[str, Any]:
        """The error document; for an execution, its error envelope."""
        return self.envelope or {"status": "error", "error": self.words()}


# 1: the execution or the operation failed


class RuntimeFailed(OperationError):
    """The handler or the container ended badly; details.exit_status and details.log where known."""

    code, exit_status = codes.RUNTIME, 1


class ProviderFailed(OperationError):
    code, exit_status = codes.PROVIDER, 1


class LimitReached(OperationError):
    """details.limit names which."""

    code, exit_status = codes.LIMIT, 1


class OutputExists(OperationError):
    code, exit_status = codes.OUTPUT_EXISTS, 1


class OutputInvalid(OperationError):
    code, exit_status = codes.OUTPUT_INVALID, 1


class UploadFailed(OperationError):
    code, exit_status = codes.UPLOAD, 1


class BuildFailed(OperationError):
    code, exit_status = "ERR_BUILD", 1


class PushFailed(OperationError):
    code, exit_status = "ERR_PUSH", 1


class ExecutionConflict(OperationError):
    """The same execution id was used for another request."""

    code, exit_status = codes.EXECUTION_CONFLICT, 1


class ExecutionLost(OperationError):
    """The container is gone and the execution's fate unknown."""

    code, exit_status = "ERR_EXECUTION_LOST", 1


# 2, 3: the call's words; drift


class UsageError(OperationError):
    code, exit_status = "ERR_USAGE", 2


class Drift(OperationError):
    code, exit_status = "ERR_DRIFT", 3


# 65: data was read and is wrong


class InvalidInputs(OperationError):
    code, exit_status = codes.INPUTS, 65


class InvalidReference(OperationError):
    code, exit_status = "ERR_REF", 65


class InvalidRegistry(OperationError):
    code, exit_status = "ERR_REGISTRY", 65


# 66: not there


class RefNotFound(OperationError):
    code, exit_status = "ERR_REF_NOT_FOUND", 66


class NotStarted(OperationError):
    code, exit_status = "ERR_NOT_STARTED", 66


class NotDeployed(OperationError):
    code, exit_status = "ERR_NOT_DEPLOYED", 66


class ImageNotFound(OperationError):
    code, exit_status = "ERR_IMAGE_NOT_FOUND", 66


class ExecutionNotFound(OperationError):
    code, exit_status = codes.EXECUTION_NOT_FOUND, 66


# 69: an outside system did not answer or broke


class EngineFailed(OperationError):
    code, exit_status = "ERR_ENGINE", 69


class ImageRegistryFailed(OperationError):
    code, exit_status = "ERR_IMAGE_REGISTRY", 69


class ImagePullFailed(OperationError):
    code, exit_status = "ERR_IMAGE_PULL", 69


class ModalFailed(OperationError):
    code, exit_status = "ERR_MODAL", 69


class StorageFailed(OperationError):
    code, exit_status = codes.STORAGE, 69


class ConnectionFailed(OperationError):
    code, exit_status = codes.CONNECTION, 69


class Unverified(OperationError):
    code, exit_status = "ERR_UNVERIFIED", 69


# 75: trying again may help


class TimedOut(OperationError):
    code, exit_status = codes.TIMEOUT, 75


class Busy(OperationError):
    code, exit_status = codes.BUSY, 75


# 77, 78: not allowed; configuration


class MissingSecret(OperationError):
    code, exit_status = codes.MISSING_SECRET, 77


class Unauthorized(OperationError):
    code, exit_status = "ERR_UNAUTHORIZED", 77


class ConfigurationError(OperationError):
    code, exit_status = "ERR_CONFIG", 78


# 130: cancelled, whoever did it


class Cancelled(OperationError):
    """details.by: user, client or shutdown."""

    code, exit_status = codes.CANCELLED, 130


_BY_CODE = {kind.code: kind for kind in OperationError.__subclasses__()}


def from_words(error: dict[str, Any]) -> OperationError:
    """The exception for an `error` object that a runtime sent; an unknown code is ERR_INTERNAL."""
    kind = _BY_CODE.get(str(error.get("code")), OperationError)
    details = error.get("details")
    return kind(
        str(error.get("message", "")),
        hint=str(error.get("hint", "")),
        details=details if isinstance(details, dict) else {},
    )
