"""Calls of pyarrow that its documentation doesn't promise, and texts of its errors."""

import os
import re
from typing import Any

from pyarrow.fs import S3FileSystem

_CAUSES = (
    (r"NO_SUCH_BUCKET|Bucket '.*' not found", "there is no such bucket"),
    (r"INVALID_ACCESS_KEY_ID", "the access key is unknown there (AWS_ACCESS_KEY_ID)"),
    (r"SIGNATURE_DOES_NOT_MATCH", "the secret key is wrong (AWS_SECRET_ACCESS_KEY)"),
    (
        r"ACCESS_DENIED|HTTP status 403|PERMISSION_DENIED|UNAUTHENTICATED",
        "access denied; no credentials were found, or they don't allow it",
    ),
    (r"Unrecognized filesystem", "there is no file system of that name"),
    (r"Path does not exist|NotFound|NO_SUCH_KEY", "no such file or folder"),
)


def s3_options(filesystem: S3FileSystem) -> dict[str, Any]:
    """Return the arguments that would make this file system again.

    `FileSystem.from_uri` reads them from a URI, which has no word for timeouts; pyarrow gives them
    back only to pickle.
    """
    options: dict[str, Any] = filesystem.__reduce__()[1][0]
    return options


def failure_cause(error: Exception) -> str:
    """Name the cause of a storage's failure in a few words.

    pyarrow raises OSError for whatever goes wrong and tells causes apart in the text alone.
    """
    text = str(error)
    for pattern, cause in _CAUSES:
        if re.search(pattern, text):
            return cause
    if match := re.search(r"curlCode: \d+, (.*?)(?:; Details: (.*))?$", text, flags=re.MULTILINE):
        return f"nothing answers: {match[2] or match[1]}"
    if match := re.search(r"CURL error \[\d+\]=(.*?) error_info", text):
        return f"nothing answers: {match[1]}"
    if match := re.search(r"AWS Error (\w+).*? operation: (.*?)(?: \(Request ID|$)", text):
        return f"{match[2]} ({match[1]})"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return text.splitlines()[0]
