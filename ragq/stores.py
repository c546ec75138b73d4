"""Object stores: what an index needs of one, for ``s3://`` and ``gs://``.

Bulk data goes through `pyarrow.fs`. It has no conditional write, which the commit of an index is, so that one request,
and the removal of objects, goes through the store's own client: boto3 (extra ``s3``) or google-cloud-storage (extra
``gcs``). Reading an index needs neither.

Credentials come from where these clients look for them: the environment, their configuration files, the machine's role.
``AWS_ENDPOINT_URL`` and ``AWS_ENDPOINT_URL_S3``, or ``?endpoint_override=HOST:PORT&scheme=http`` in the URL, name a
store that speaks S3 elsewhere; ``STORAGE_EMULATOR_HOST`` does so for ``gs://``.
"""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from ragq.errors import CorruptIndexError, InvalidArgumentError, RagqError, StorageError, missing_extra
from ragq.storage import CHUNK, HashingFile

__all__ = ["ChangedError", "Store", "is_url", "open_store", "store_errors"]

URL = re.compile(r"([a-z][a-z0-9+.-]+):/+")  # a Path has one slash where a URL has two
PART = 8 * CHUNK
DELETED_AT_ONCE = 1000  # what S3 takes in one request
CONNECT_SECONDS, REQUEST_SECONDS = 10, 60  # as boto3 has them; the 3 s of Arrow are short for a busy machine
ACCOUNT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


class ChangedError(RagqError):
    """An object is not the version that a conditional write names."""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path names an object store, and no local folder."""
    return URL.match(os.fspath(path)) is not None


@contextlib.contextmanager
def store_errors(url: str, doing: str) -> Iterator[None]:
    """Turn what a store's clients raise into a `StorageError` that names the object."""
    try:
        yield
    except (RagqError, FileNotFoundError):
        raise
    except Exception as error:  # botocore, google and Arrow each have a family of their own
        if not (isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "boto3", "google"))):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise StorageError(f"Cannot {doing} {url}: {reason}.") from error


class Store(ABC):
    """The objects below one prefix of a bucket.

    Attributes
    ----------
    url : str
        Where they are, without options; for messages, and to tell two stores apart.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str, options: dict[str, str]) -> None:
        self.bucket, self.prefix, self.options = bucket, prefix, options
        self.url = f"{scheme}://{bucket}/{prefix}".rstrip("/")

    @property
    def reference(self) -> str:
        """The URL with all options: what `open_store` takes, in another process too."""
        return self.url + (f"?{urlencode(sorted(self.options.items()))}" if self.options else "")

    @cached_property
    @abstractmethod
    def fs(self) -> Any:
        """The `pyarrow.fs.FileSystem`."""

    def key(self, name: str) -> str:
        """Return the key of an object within its bucket."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def path(self, name: str) -> str:
        """Return the path of an object as `fs` takes it."""
        return f"{self.bucket}/{self.key(name)}"

    def read(self, name: str) -> bytes | None:
        """Return a small object, or None when there is none."""
        with store_errors(f"{self.url}/{name}", "read"):
            try:
                with self.fs.open_input_stream(self.path(name)) as stream:
                    data: bytes = stream.read()
            except FileNotFoundError:
                return None
        return data

    def download(self, name: str, file: HashingFile) -> None:
        """Copy an object of an index into an open file; raises `CorruptIndexError` when there is none."""
        with store_errors(f"{self.url}/{name}", "read"):
            try:
                stream = self.fs.open_input_stream(self.path(name), compression=None)
            except FileNotFoundError:
                raise CorruptIndexError(
                    f"{self.url}/{name} is missing. If the index was compacted since it was opened, open it again or "
                    "call refresh()."
                ) from None
            with stream:
                while chunk := stream.read(PART):
                    file.write(chunk)

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into the store; the object appears when it is whole."""
        with store_errors(f"{self.url}/{name}", "write"), path.open("rb") as source:
            size = path.stat().st_size
            if size <= PART:  # one request
                self.put(name, source.read())
                return
            with self.fs.open_output_stream(self.path(name), compression=None) as sink:
                while chunk := source.read(PART):
                    sink.write(chunk)

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return the bytes of some objects; None for one that is not there."""
        names = list(names)
        with store_errors(self.url, "read"):
            found = self.fs.get_file_info([self.path(name) for name in names])
        return {name: info.size for name, info in zip(names, found, strict=True)}

    def list(self) -> dict[str, float]:
        """Return the names of all objects, with the Unix times of their last change."""
        from pyarrow.fs import FileSelector, FileType

        root = self.path("")
        with store_errors(self.url, "list"):
            found = self.fs.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        files = [info for info in found if info.type == FileType.File]
        return {info.path.removeprefix(root): (info.mtime_ns or 0) / 1e9 for info in files}

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write an object in one request."""

    @abstractmethod
    def read_version(self, name: str) -> tuple[bytes | None, str | None]:
        """Return an object and the version of it that was read; (None, None) when there is none."""

    @abstractmethod
    def replace(self, name: str, data: bytes, version: str | None) -> str:
        """Write an object if it still has a version (None: if there is none); return its new version.

        Raises
        ------
        ChangedError
            It has another one, or somebody is changing it now.
        """

    def check_conditions(self, name: str) -> None:
        """Raise `StorageError` when the store does not heed conditions: some that speak S3 overwrite all the same.

        Parameters
        ----------
        name : str
            Of an object to try it with, which is removed.
        """
        first = self.replace(name, b"1", None)
        second = self.replace(name, b"2", first)
        heeded = 0
        for version in (None, first):
            try:
                self.replace(name, b"3", version)
            except ChangedError:
                heeded += 1
        self.delete([name])
        if heeded < 2 or first == second:
            raise StorageError(
                f"{self.url} does not heed conditional writes, so that two writers could undo each other's changes. "
                "Write the index to a folder, and copy it there."
            )

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""


class S3Store(Store):
    """``s3://bucket/prefix``: Amazon S3, and what speaks its protocol with conditional writes (MinIO, R2, …)."""

    def __init__(self, scheme: str, bucket: str, prefix: str, options: dict[str, str]) -> None:
        super().__init__(scheme, bucket, prefix, check_options(options, {"region", "scheme", "endpoint_override"}))
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if "endpoint_override" not in self.options and endpoint:
            parts = urlsplit(endpoint)
            self.options = {"scheme": parts.scheme, "endpoint_override": parts.netloc} | self.options
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region:
            self.options = {"region": region} | self.options

    @cached_property
    def fs(self) -> Any:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

        options = dict(self.options)
        if not {"region", "endpoint_override"} & options.keys():
            with store_errors(self.url, "find"):
                options["region"] = resolve_s3_region(self.bucket)
        attempts = AwsStandardS3RetryStrategy(max_attempts=int(os.environ.get("AWS_MAX_ATTEMPTS") or 3))
        return S3FileSystem(
            **options, retry_strategy=attempts, connect_timeout=CONNECT_SECONDS, request_timeout=REQUEST_SECONDS
        )

    @cached_property
    def client(self) -> Any:
        """The boto3 client."""
        with store_errors(self.url, "open"):
            account = tuple(os.environ.get(name) for name in ACCOUNT)
            return s3_client(tuple(sorted(self.options.items())), account, os.getpid())

    def put(self, name: str, data: bytes) -> None:
        with store_errors(f"{self.url}/{name}", "write"):
            self.client.put_object(Bucket=self.bucket, Key=self.key(name), Body=data)

    def read_version(self, name: str) -> tuple[bytes | None, str | None]:
        with store_errors(f"{self.url}/{name}", "read"):
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self.key(name))
            except self.client.exceptions.NoSuchKey:
                return None, None
            return found["Body"].read(), found["ETag"]

    def replace(self, name: str, data: bytes, version: str | None) -> str:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with store_errors(f"{self.url}/{name}", "write"):
            try:
                done = self.client.put_object(Bucket=self.bucket, Key=self.key(name), Body=data, **condition)
            except ClientError as error:
                # 412: another version is there; 409: another conditional write is under way; 404: it was removed
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 409, 412):
                    raise ChangedError(f"{self.url}/{name} was changed by another writer.") from error
                raise
            etag: str = done["ETag"]
            return etag

    def delete(self, names: Iterable[str]) -> None:
        keys = [{"Key": self.key(name)} for name in names]
        with store_errors(self.url, "remove objects of"):
            for first in range(0, len(keys), DELETED_AT_ONCE):
                some = {"Objects": keys[first : first + DELETED_AT_ONCE], "Quiet": True}
                self.client.delete_objects(Bucket=self.bucket, Delete=some)


class GCSStore(Store):
    """``gs://bucket/prefix``: Google Cloud Storage, whose objects have generation numbers."""

    def __init__(self, scheme: str, bucket: str, prefix: str, options: dict[str, str]) -> None:
        super().__init__(scheme, bucket, prefix, check_options(options, {"scheme", "endpoint_override"}))
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if "endpoint_override" not in self.options and emulator:
            parts = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
            self.options = {"scheme": parts.scheme, "endpoint_override": parts.netloc} | self.options

    @cached_property
    def fs(self) -> Any:
        from datetime import timedelta

        from pyarrow.fs import GcsFileSystem

        anonymous = "endpoint_override" in self.options  # an emulator has no accounts
        return GcsFileSystem(**self.options, anonymous=anonymous, retry_time_limit=timedelta(seconds=60))

    @cached_property
    def client(self) -> Any:
        """The bucket, by google-cloud-storage."""
        try:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import storage
        except ImportError:
            raise missing_extra("google-cloud-storage", "gcs") from None
        with store_errors(self.url, "open"):
            endpoint = self.options.get("endpoint_override")
            if endpoint is None:
                return storage.Client().bucket(self.bucket)
            address = {"api_endpoint": f"{self.options.get('scheme', 'https')}://{endpoint}"}
            client = storage.Client("none", credentials=AnonymousCredentials(), client_options=address)
            return client.bucket(self.bucket)

    def put(self, name: str, data: bytes) -> None:
        with store_errors(f"{self.url}/{name}", "write"):
            self.client.blob(self.key(name)).upload_from_string(data, "application/octet-stream")

    def read_version(self, name: str) -> tuple[bytes | None, str | None]:
        from google.api_core.exceptions import NotFound

        with store_errors(f"{self.url}/{name}", "read"):
            for _ in range(8):
                blob = self.client.get_blob(self.key(name))
                if blob is None:
                    return None, None
                with contextlib.suppress(NotFound):  # replaced since: look again
                    data = self.client.blob(self.key(name), generation=blob.generation).download_as_bytes()
                    return data, str(blob.generation)
        raise StorageError(f"{self.url}/{name} changes faster than it can be read. Try again later.")

    def replace(self, name: str, data: bytes, version: str | None) -> str:
        from google.api_core.exceptions import PreconditionFailed

        with store_errors(f"{self.url}/{name}", "write"):
            blob = self.client.blob(self.key(name))
            try:
                blob.upload_from_string(data, "application/json", if_generation_match=int(version or 0))
            except PreconditionFailed as error:
                raise ChangedError(f"{self.url}/{name} was changed by another writer.") from error
            return str(blob.generation)

    def delete(self, names: Iterable[str]) -> None:
        with store_errors(self.url, "remove objects of"):
            self.client.delete_blobs([self.key(name) for name in names], on_error=lambda blob: None)


@lru_cache(maxsize=8)
def s3_client(options: tuple[tuple[str, str], ...], account: tuple[str | None, ...], process: int) -> Any:
    """Return a boto3 client, which takes a quarter of a second to make and is safe among threads; not across a fork."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise missing_extra("boto3", "s3") from None
    given = dict(options)
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    endpoint = given.get("endpoint_override")
    if endpoint is not None:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
        config = config.merge(Config(s3={"addressing_style": "path"}))
    session = boto3.session.Session(region_name=given.get("region"))
    return session.client("s3", endpoint_url=endpoint, config=config)


STORES: dict[str, type[Store]] = {"s3": S3Store, "gs": GCSStore}


def check_options(options: dict[str, str], known: set[str]) -> dict[str, str]:
    """Return the options of a URL; refuse those that are not known."""
    for name in options:
        if name not in known:
            raise InvalidArgumentError(f"A URL of this kind has the options {', '.join(sorted(known))}. Got {name!r}.")
    return dict(options)


def open_store(url: str | os.PathLike[str], *, bucket: bool = False) -> Store:
    """Return the store that a URL names; nothing is asked of it yet.

    Parameters
    ----------
    url : str
    bucket : bool
        Whether a whole bucket will do.

    Raises
    ------
    InvalidArgumentError
        Not ``s3://bucket/path`` or ``gs://bucket/path``, or credentials in the URL.
    """
    text = URL.sub(r"\1://", os.fspath(url), count=1)
    parts = urlsplit(text)
    if parts.scheme not in STORES:
        raise InvalidArgumentError(f"'{text}' is a URL, and neither s3:// nor gs://. Give one of these, or a folder.")
    prefix = parts.path.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", parts.netloc):
        more = " Credentials belong into the environment, not into the URL." if "@" in parts.netloc else ""
        raise InvalidArgumentError(f"A URL must be {parts.scheme}://bucket/path. It names no bucket.{more}")
    if not (prefix or bucket) or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise InvalidArgumentError(f"'{text}' must name a path within the bucket: {parts.scheme}://bucket/path.")
    return STORES[parts.scheme](parts.scheme, parts.netloc, prefix, dict(parse_qsl(parts.query)))
