"""Records of runs and stores in one compressed file (`records.tar.xz`), and the way back into a folder."""

import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from sodp3d.core.errors import InputError
from sodp3d.core.files import replace_file

SUFFIX = ".tar.xz"
_MOST_BYTES = 500_000_000  # unpacked: a small file can hold a disk full of zeros


def pack(folder: Path, archive: Path) -> None:
    """Write all files below `folder` into `archive`, in one step; equal files give equal bytes. Raises OSError."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", format=tarfile.PAX_FORMAT, preset=9) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # A new TarInfo has no date, no owner and mode 0644.
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(member, file)
    archive.parent.mkdir(parents=True, exist_ok=True)
    replace_file(archive, content.getvalue(), durable=True)


def unpack(archive: Path, folder: Path) -> None:
    """Write the archive's files into `folder`.

    Raises InputError where it cannot be read, or where a member is not a plain file inside `folder`: an absolute path,
    `..`, a link or a device. Nothing is written then.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_decompressed(archive)), mode="r:") as tar:
            members = tar.getmembers()
            for member in members:
                _check_member(archive, member)
            for member in members:
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{archive}: not a readable {SUFFIX} file ({error}); restore it from a copy.") from error


def _decompressed(archive: Path) -> bytes:
    """The whole of it, but never more than fits in memory. Raises LZMAError."""
    decompressor = lzma.LZMADecompressor()
    content = decompressor.decompress(archive.read_bytes(), max_length=_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InputError(f"{archive}: holds more than {_MOST_BYTES / 1e6:g} MB, which no records need.")
    if not decompressor.eof:
        raise lzma.LZMAError("it ends too early")
    return content


@contextmanager
def unpacked(sources: Sequence[Path]) -> Iterator[list[Path]]:
    """`sources` with a temporary folder in the place of each archive among them. Raises InputError as `unpack` does."""
    with ExitStack() as stack:
        folders = []
        for source in sources:
            if source.is_file() and source.name.endswith(SUFFIX):
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="sodp3d-records-")))
                unpack(source, folder)
                source = folder
            folders.append(source)
        yield folders


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise InputError(f"{archive}: {member.name!r} points outside the archive; take the file from another source.")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise InputError(f"{archive}: {member.name!r} is a link or a device; records hold plain files alone.")
