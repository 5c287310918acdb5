"""Error codes that cross the wire: what a runtime may put into a `completed` message.

The whole table, with exit statuses, is `apps/errors.py`; a code is spelled in one place only.
"""

from typing import Final

RUNTIME: Final = "ERR_RUNTIME"
PROVIDER: Final = "ERR_PROVIDER"
LIMIT: Final = "ERR_LIMIT"
OUTPUT_EXISTS: Final = "ERR_OUTPUT_EXISTS"
OUTPUT_INVALID: Final = "ERR_OUTPUT_INVALID"
UPLOAD: Final = "ERR_UPLOAD"
STORAGE: Final = "ERR_STORAGE"
EXECUTION_CONFLICT: Final = "ERR_EXECUTION_CONFLICT"
EXECUTION_NOT_FOUND: Final = "ERR_EXECUTION_NOT_FOUND"
INPUTS: Final = "ERR_INPUTS"
TIMEOUT: Final = "ERR_TIMEOUT"
BUSY: Final = "ERR_BUSY"
MISSING_SECRET: Final = "ERR_MISSING_SECRET"
CANCELLED: Final = "ERR_CANCELLED"
INTERNAL: Final = "ERR_INTERNAL"
CONNECTION: Final = "ERR_CONNECTION"
