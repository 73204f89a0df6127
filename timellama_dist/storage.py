"""Places that hold files: a local path, or a URI of object storage through pyarrow.

`s3://bucket/key`, `gs://...` and whatever else `pyarrow.fs.FileSystem.from_uri` knows; an S3 server
of your own by `AWS_ENDPOINT_URL` or `?endpoint_override=...&scheme=http`. Credentials belong into
the environment: a process elsewhere finds its own.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode
from uuid import uuid4

import pyarrow as pa
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    LocalFileSystem,
    S3FileSystem,
)

from timellama_dist.compat.pyarrow import failure_cause, s3_options
from timellama_dist.errors import DataError

# At least two letters: C:/ is a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHOWN_OPTIONS = ("endpoint_override", "scheme", "region")
_BUCKETS = ("s3", "gcs")

# An endpoint that accepts and never answers is given up after ten seconds in all.
_S3_PATIENCE = {"connect_timeout": 3.0, "request_timeout": 3.0}
_S3_ATTEMPTS = 3
_GS_PATIENCE_S = 5


@dataclass(frozen=True, repr=False)
class Place:
    """A file or folder, there or not; made by `open_place`.

    Pickles as its URI. What the storage refuses is a DataError in one line.
    """

    uri: str
    """An absolute local path, or a URI with its options (`?endpoint_override=...`)."""

    def __str__(self) -> str:
        """The URI without credentials."""
        if self.is_local:
            return self.uri
        scheme, authority, key, query = self._parts()
        options = [(name, value) for name, value in parse_qsl(query) if name in _SHOWN_OPTIONS]
        # Before an @ there may also be just a container's name.
        host = authority.rpartition("@")[2] if self.has_credentials else authority
        shown = f"{scheme}://{host}{'/' if key else ''}{key}"
        return shown + (f"?{urlencode(options, safe=':/')}" if options else "")

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    def __truediv__(self, child: str) -> Self:
        """Return a place below this; `child` is a plain name or relative path, not a URI's."""
        if self.is_local:
            return type(self)(str(Path(self.uri) / child))
        location, mark, query = self.uri.partition("?")
        return type(self)(f"{location.rstrip('/')}/{quote(child, safe='/ =+:,@')}{mark}{query}")

    @property
    def is_local(self) -> bool:
        return _SCHEME.match(self.uri) is None

    @property
    def has_credentials(self) -> bool:
        """Whether the URI holds a user's key or password."""
        return not self.is_local and ":" in self._parts()[1].rpartition("@")[0]

    @property
    def filesystem(self) -> FileSystem:
        """One object a process, for all places of the same storage.

        Raises:
            DataError: an unknown scheme or option, or nothing answers.
        """
        return self._connected()[0]

    @property
    def path(self) -> str:
        """The path inside `filesystem`."""
        if self.is_local:
            return self.uri
        base, key = self._connected()[1], unquote(self._parts()[2]).strip("/")
        if not key:
            return base
        return f"{base.rstrip('/')}/{key}" if base else key

    @property
    def name(self) -> str:
        """The last part of the path; a bucket's name at the top."""
        if self.is_local:
            return Path(self.uri).name
        _, authority, key, _ = self._parts()
        return PurePosixPath(unquote(key)).name or authority.rpartition("@")[2]

    @property
    def suffix(self) -> str:
        """As `Path.suffix`."""
        return PurePosixPath(self.name).suffix

    def exists(self) -> bool:
        """Tell whether there is a file or folder; DataError if the bucket itself is missing."""
        return self._info().type != FileType.NotFound

    def is_dir(self) -> bool:
        return self._info().type == FileType.Directory

    def is_file(self) -> bool:
        return self._info().type == FileType.File

    def size(self) -> int:
        """Return the bytes of the file.

        Raises:
            DataError: no such file.
        """
        return int(self._file_info().size)

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Ask for the bytes of files below this folder, all at once; None for what is no file."""
        with _one_line(self, "read"):
            infos = self.filesystem.get_file_info([(self / name).path for name in names])
        return [info.size if info.type == FileType.File else None for info in infos]

    def children(self) -> list[Self]:
        """List what lies directly in this folder, by name.

        Raises:
            DataError: no such folder.
        """
        with _one_line(self, "listed"):
            infos = self.filesystem.get_file_info(FileSelector(self.path))
        return [self / name for name in sorted(info.base_name for info in infos)]

    def fingerprint(self) -> str:
        """Return a text that changes when the file does: its size, and its etag or else its time.

        Raises:
            DataError: no such file.
        """
        info, etag = self._file_info(), None
        if not self.is_local:
            with self.open_input_file() as file:
                etag = (file.metadata() or {}).get("ETag")
        return f"{info.size}-{info.mtime_ns if etag is None else etag.decode()}"

    def open_input_file(self) -> pa.NativeFile:
        """Open the file, seekable, its bytes as they are.

        Raises:
            DataError: it cannot be opened.
        """
        with _one_line(self, "read"):
            return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            DataError: it cannot be read.
        """
        with _one_line(self, "read"), self.open_input_file() as file:
            return file.read()

    def read_text(self) -> str:
        """Read the whole file, in UTF-8.

        Raises:
            DataError: it cannot be read, or is of another encoding.
        """
        try:
            return self.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self}: cannot be read: {error}") from error

    @contextmanager
    def open_output_stream(self) -> Iterator[pa.NativeFile]:
        """Open a stream whose file appears, or replaces another, when the block ends.

        A block that raises leaves no half file; remotely also not the one it would have replaced.

        Raises:
            DataError: the storage doesn't take it.
        """
        with _one_line(self, "written"):
            draft = self.path
            if self.is_local:
                folder, name = os.path.split(draft)
                _make_folder(folder)
                draft = os.path.join(folder, f".{name}.{uuid4().hex[:12]}")
            try:
                # No guess at a compression from the name.
                with self.filesystem.open_output_stream(draft, compression=None) as stream:
                    yield stream
                if self.is_local:
                    _sync(draft)
                    os.replace(draft, self.path)
                    # Else a power cut may take the name back, though not the bytes.
                    _sync_folder(folder)
            except BaseException:
                with suppress(OSError):
                    self.filesystem.delete_file(draft)
                raise

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, all or nothing.

        Raises:
            DataError: the storage doesn't take it.
        """
        with self.open_output_stream() as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write the whole file in UTF-8, all or nothing.

        Raises:
            DataError: the storage doesn't take it.
        """
        self.write_bytes(text.encode("utf-8"))

    def make_dirs(self) -> None:
        """Make this folder and those above it; object storage needs none, but takes it.

        Raises:
            DataError: it cannot be made.
        """
        with _one_line(self, "made"):
            if self.is_local:
                _make_folder(self.path)
            else:
                self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Remove the file, or the folder with all in it, if it is there.

        Raises:
            DataError: the storage refuses.
        """
        info = self._info()
        with _one_line(self, "deleted"):
            if info.type == FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif info.type != FileType.NotFound:
                self.filesystem.delete_file(self.path)

    def _parts(self) -> tuple[str, str, str, str]:
        """Split the URI into scheme, authority, key (as quoted) and query."""
        location, _, query = self.uri.partition("?")
        scheme, _, rest = location.partition("://")
        authority, _, key = rest.partition("/")
        return scheme, authority, key, query

    def _connected(self) -> tuple[FileSystem, str]:
        """Return the file system, and the path of its top."""
        if self.is_local:
            return _LOCAL, ""
        scheme, authority, _, query = self._parts()
        with _one_line(self, "reached"):
            return _connect(f"{scheme}://{authority}{'?' if query else ''}{query}")

    def _info(self) -> FileInfo:
        with _one_line(self, "read"):
            info = self.filesystem.get_file_info(self.path)
            if info.type == FileType.NotFound and self._lacks_bucket():
                raise FileNotFoundError(f"Bucket '{self.path}' not found")
            return info

    def _lacks_bucket(self) -> bool:
        """Tell whether the bucket itself is missing, which storage reports like a missing file."""
        if self.filesystem.type_name not in _BUCKETS:
            return False
        # Who may use a bucket's files may not be allowed to ask about the bucket.
        with suppress(OSError):
            bucket = self.filesystem.get_file_info(self.path.partition("/")[0])
            return bool(bucket.type == FileType.NotFound)
        return False

    def _file_info(self) -> FileInfo:
        info = self._info()
        if info.type != FileType.File:
            raise DataError(f"{self}: no such file")
        return info


Location = str | Path | Place


def open_place(location: Location) -> Place:
    """Return the place of a local path (`~` stands for the home folder) or of a URI.

    Asks the storage nothing yet.
    """
    if isinstance(location, Place):
        return location
    text = str(location)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    elif _SCHEME.match(text):
        return Place(text)
    return Place(str(Path(text).expanduser().absolute()))


def copy_tree(source: Place, target: Place) -> None:
    """Copy a file, or a folder with all in it, one file after the other.

    Raises:
        DataError: either storage refuses.
    """
    if source.is_file():
        with source.open_input_file() as file, target.open_output_stream() as stream:
            shutil.copyfileobj(file, stream, 8 << 20)
        return
    for child in source.children():
        # Keys are free text: this one would lead out of the target.
        if child.name == "..":
            raise DataError(f"{child}: cannot be copied: a file may not be named ..")
        copy_tree(child, target / child.name)


_LOCAL = LocalFileSystem()


@lru_cache
def _connect(root: str) -> tuple[FileSystem, str]:
    """Connect to the file system of a URI without key; return it and the path of its top."""
    if root.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in root:
        root += f"{'&' if '?' in root else '?'}retry_limit_seconds={_GS_PATIENCE_S}"
    try:
        filesystem, base = FileSystem.from_uri(root)
    except pa.ArrowInvalid as error:
        # Not a bad value inside a program, as elsewhere, but a URI that can't be opened.
        raise OSError(re.sub(r"//[^/\s]*@", "//", str(error))) from None
    if isinstance(filesystem, S3FileSystem):
        # A URI has no word for timeouts: take what pyarrow read from it, and add them.
        options = s3_options(filesystem)
        filesystem = S3FileSystem(
            # A small file is one put, not an upload of one part.
            **(options | _S3_PATIENCE | {"allow_delayed_open": True, "proxy_options": None}),
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
        )
    return filesystem, base


@contextmanager
def _one_line(place: Place, deed: str) -> Iterator[None]:
    """Turn a failure of the storage into one line that names the place and the cause."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{place}: cannot be {deed}: {failure_cause(error)}") from error


def _make_folder(path: str) -> None:
    """Make a folder and those above it, each to be found again after a power cut."""
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    above = os.path.dirname(path)
    _make_folder(above)
    os.makedirs(path, exist_ok=True)
    _sync_folder(above)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    try:
        _sync(path)
    except OSError as error:
        # Some network file systems know no such thing.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
