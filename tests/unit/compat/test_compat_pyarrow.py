"""pyarrow still has what `compat.pyarrow` takes of it."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem

from timellama_dist.compat.pyarrow import failure_cause, s3_options


def test_an_s3_file_system_is_made_again_from_its_options() -> None:
    uri = "s3://user:secret@lake/key?endpoint_override=localhost%3A1&scheme=http&region=here"
    filesystem, _ = FileSystem.from_uri(uri)
    options = s3_options(filesystem)
    assert options["endpoint_override"] == "localhost:1"
    assert (options["scheme"], options["region"]) == ("http", "here")
    again = S3FileSystem(**(options | {"proxy_options": None}))
    assert again.equals(filesystem)


def test_a_missing_file_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent") as caught:
        LocalFileSystem().open_input_file(str(tmp_path / "absent"))
    assert failure_cause(caught.value) == "No such file or directory"


def test_an_unknown_scheme_is_named_as_one() -> None:
    with pytest.raises(pa.ArrowInvalid) as caught:
        FileSystem.from_uri("nowhere://lake/key")
    assert failure_cause(caught.value) == "there is no file system of that name"


def test_an_endpoint_that_refuses_is_named_as_one() -> None:
    filesystem = S3FileSystem(
        access_key="a",
        secret_key="b",
        endpoint_override="localhost:1",
        scheme="http",
        region="here",
        connect_timeout=1,
        request_timeout=1,
    )
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the cause is what is tested)
        filesystem.get_file_info("lake/key")
    assert failure_cause(caught.value).startswith("nothing answers: ")
