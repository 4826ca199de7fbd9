"""Where packages come from: files about to be pushed, a folder, an archive, a web address."""

import errno
import http.client
import lzma
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from sodp3d.core.errors import InputError
from sodp3d.sharing.manifest import MANIFEST, MANIFEST_BYTES, Entry, Manifest

ARCHIVE = ".zip"
_DAMAGE = (  # what zipfile raises at archives, and its members' decompressors, besides its own BadZipFile
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, KeyError, RuntimeError, ValueError,
)  # fmt: skip
_BLOCK = 2**20
_SECONDS = 60.0  # without a byte, until a server is given up
_LOCAL = ("127.0.0.1", "localhost", "::1")


class Source(Protocol):
    """A package somewhere."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def at_once(self) -> int:
        """Files that are best fetched side by side."""
        ...

    def manifest(self) -> bytes:
        """The manifest as it is there. Raises InputError where there is none, or one that is too large."""
        ...

    def check(self, manifest: Manifest) -> None:
        """Raise InputError for what is wrong with the package there, as far as can be told before fetching."""
        ...

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        """Write one file to `path`, at most a byte more than it shall have. Raises InputError where it is not there."""
        ...


@dataclass(frozen=True)
class Files:
    """What is pushed: names in the package, and where each file is now."""

    name: str
    kind: str
    files: Mapping[str, Path]
    described: Manifest
    at_once: int = 1

    def manifest(self) -> bytes:
        """As `Source.manifest`."""
        return self.described.content()

    def check(self, manifest: Manifest) -> None:
        """As `Source.check`."""

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        """As `Source.fetch`."""
        with self.files[name].open("rb") as stream:
            copy(stream, path, entry.size)


class Folder:
    """A package as it is on a disk."""

    at_once = 1

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def manifest(self) -> bytes:
        """As `Source.manifest`."""
        path = self.path / MANIFEST
        if not path.is_file():
            raise InputError(f"{self.path}: no package here ({MANIFEST} is missing); sodp3d push makes one.")
        with path.open("rb") as stream:
            return limited(stream, self.name)

    def check(self, manifest: Manifest) -> None:
        """As `Source.check`: a link would lead out of the package."""
        for name in manifest.files:
            path = self.path / name
            parents = [self.path.joinpath(*path.relative_to(self.path).parts[:depth]) for depth in range(1, 6)]
            if link := next((part for part in (path, *parents) if part.is_symlink()), None):
                raise InputError(f"{link}: a link, which a package has none of; nothing of it is taken.")

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        """As `Source.fetch`."""
        try:
            with (self.path / name).open("rb") as stream:
                copy(stream, path, entry.size)
        except FileNotFoundError:
            raise InputError(f"{self.path}: {name} is missing, though {MANIFEST} names it.") from None


class Archive:
    """A package as one .zip file. Members are read as they are named, never unpacked by the archive's own rules."""

    at_once = 1

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or str(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise InputError(f"{path}: file is missing.") from None
        except _DAMAGE as error:
            raise InputError(f"{self.name}: no archive that can be read ({error}).") from None

    def manifest(self) -> bytes:
        """As `Source.manifest`."""
        with self._open(MANIFEST) as stream:
            return limited(stream, self.name)

    def check(self, manifest: Manifest) -> None:
        """As `Source.check`: its members are those of the manifest, each once."""
        members = self._archive.namelist()
        foreign = sorted(set(members) - {MANIFEST, *manifest.files})
        if foreign or len(set(members)) < len(members):
            told = f"{foreign[0]!r}, which {MANIFEST} does not name" if foreign else "a name twice"
            raise InputError(f"{self.name}: holds {told}; nothing of it is taken.")

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        """As `Source.fetch`."""
        with self._open(name) as stream:
            copy(stream, path, entry.size)

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        """A member, to be read inside the context. Raises InputError where it is missing or damaged."""
        try:
            with self._archive.open(name) as stream:
                yield stream
        except InputError:  # a ValueError too
            raise
        except _DAMAGE as error:
            # Other errors are the disk's: bz2's has no number, and a damaged offset leads outside the file (EINVAL).
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise InputError(f"{self.name}: {name} cannot be read ({error}); it is no package, or damaged.") from None

    def close(self) -> None:
        """Close the file."""
        self._archive.close()


class Web:
    """A package below a web address, each file at its name."""

    at_once = 8

    def __init__(self, address: str) -> None:
        self.name = address.rstrip("/")

    def manifest(self) -> bytes:
        """As `Source.manifest`."""
        with opened(f"{self.name}/{MANIFEST}") as stream:
            return limited(stream, self.name)

    def check(self, manifest: Manifest) -> None:
        """As `Source.check`."""

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        """As `Source.fetch`."""
        download(f"{self.name}/{urllib.parse.quote(name)}", path, entry.size)


def copy(stream: IO[bytes], path: Path, most: int) -> None:
    """Write a stream to a file: `most` bytes, and one more where there are more, by which too many show."""
    left = most + 1
    with path.open("wb") as file:
        while left and (block := stream.read(min(_BLOCK, left))):
            file.write(block)
            left -= len(block)


def limited(stream: IO[bytes], where: str) -> bytes:
    """A manifest's bytes. Raises InputError where there are more than a manifest has."""
    content = stream.read(MANIFEST_BYTES + 1)
    if len(content) > MANIFEST_BYTES:
        raise InputError(f"{where}: {MANIFEST} has more than {MANIFEST_BYTES // 2**20} MiB; nothing of it is taken.")
    return content


def download(address: str, path: Path, most: int) -> None:
    """`copy` of what is at a web address. Raises InputError as `opened`."""
    with opened(address) as stream:
        copy(stream, path, most)


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """The answer of a web address, to be read.

    Raises InputError where it is none of https, does not answer, or breaks off before the end of the context.
    """
    _require_safe(address)
    try:
        opener = urllib.request.build_opener(_SafeRedirects)
        with opener.open(address, timeout=_SECONDS) as stream:
            yield stream
            _require_unbroken(stream, address)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        raise InputError(f"{address}: the server answers {error.code} ({error.reason}).") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        told = getattr(error, "reason", None) or error
        raise InputError(f"{address}: no answer, or none to its end ({told}); run it again.") from None


def _require_unbroken(stream: http.client.HTTPResponse, address: str) -> None:
    """Raise InputError where less came than was told: reading a connection that breaks ends as one that is over."""
    left = stream.length  # by Content-Length, where that was told
    if left and not stream.read(1):
        total = int(stream.headers["Content-Length"])
        raise InputError(f"{address}: broke off after {total - left} of {total} bytes; run it again.")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to where digests could be changed on the way."""

    def redirect_request(self, request: Any, file: Any, code: int, reason: str, headers: Any, address: str) -> Any:
        _require_safe(address)
        return super().redirect_request(request, file, code, reason, headers, address)


def _require_safe(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise InputError(
            f"{address}: expected an https address; over {parts.scheme or 'anything else'} files and their digests "
            "could be changed on the way."
        )
