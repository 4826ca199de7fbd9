"""Packages in repositories of Hugging Face: `hf://owner/name[@revision]`, `hf://datasets/owner/name[@revision]`.

All of it goes through huggingface_hub: its login, its cache of partial files, its endpoint (HF_ENDPOINT). Tokens are
never read here but to keep them out of messages.
"""

import importlib.util
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.sharing.manifest import MANIFEST, MANIFEST_BYTES, STORE, Entry, Manifest
from sodp3d.sharing.sources import Files

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(datasets/)?((?!datasets/)[\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_THEIR_OWN = (".gitattributes",)  # files that a new repository has


@dataclass(frozen=True)
class Repository:
    """name: owner/name. kind: model | dataset. revision: a branch, tag or commit; None: the main branch."""

    name: str
    kind: str
    revision: str | None = None

    @classmethod
    def of(cls, address: str) -> "Repository":
        """Raises InputError for an address of another form, or where huggingface_hub is missing."""
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise InputError(
                f"{address}: expected hf://<owner>/<name> for a planner, hf://datasets/<owner>/<name> for a store, and "
                "@<revision> behind it if you like."
            )
        if importlib.util.find_spec("huggingface_hub") is None:
            raise InputError(
                f"{address}: huggingface_hub not installed; pip install huggingface_hub (the extra share)."
            )
        return cls(found[2], "dataset" if found[1] else "model", found[3])

    @property
    def address(self) -> str:
        """As it is typed, without the revision."""
        return f"{SCHEME}{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


class HubSource:
    """A package in a repository, at the commit that its revision names now."""

    at_once = 8

    def __init__(self, repository: Repository) -> None:
        from huggingface_hub import HfApi

        self._repository, self.name = repository, repository.address
        self._of: dict[str, Any] = {"repo_id": repository.name, "repo_type": repository.kind}
        with _hub_errors(self.name):
            self.commit = str(HfApi().repo_info(**self._of, revision=repository.revision).sha)
            self._sizes = _sizes(repository, self.commit)

    def manifest(self) -> bytes:
        """As `Source.manifest`."""
        if self._sizes.get(MANIFEST, MANIFEST_BYTES + 1) > MANIFEST_BYTES:
            raise InputError(
                f"{self.name}: no package here ({MANIFEST} is missing, or too large); sodp3d push makes one."
            )
        with tempfile.TemporaryDirectory(prefix="sodp3d-pull-") as folder:
            return self._download(MANIFEST, Path(folder)).read_bytes()

    def check(self, manifest: Manifest) -> None:
        """As `Source.check`: sizes are told before a byte is fetched."""
        for name, entry in manifest.files.items():
            if self._sizes.get(name) != entry.size:
                raise InputError(
                    f"{self.name}: {name} has {self._sizes.get(name, 'no')} bytes there and {entry.size} in "
                    f"{MANIFEST}; nothing of it is taken."
                )

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        """As `Source.fetch`."""
        self._download(name, path.parent / "hub").replace(path)

    def _download(self, name: str, folder: Path) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        with _hub_errors(self.name):
            return Path(hf_hub_download(**self._of, filename=name, revision=self.commit, local_dir=folder))


def push_to_hub(files: Files, repository: Repository, public: bool) -> str:
    """One commit that makes the repository hold the package; its address. A new repository is private unless `public`.

    Raises InputError where the repository is of the other kind, or holds files that are no package's.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if (repository.kind == "dataset") != (files.kind == STORE):
        wanted = Repository(repository.name, "dataset" if files.kind == STORE else "model").address
        raise InputError(f"{repository.address}: a {files.kind} is pushed to {wanted}.")
    disable_progress_bars()
    api = HfApi()
    of: dict[str, Any] = {"repo_id": repository.name, "repo_type": repository.kind}
    with _hub_errors(repository.address), tempfile.TemporaryDirectory(prefix="sodp3d-push-") as folder:
        api.create_repo(**of, private=not public, exist_ok=True)
        there = repository.revision is None or api.revision_exists(**of, revision=repository.revision)
        stale = _stale(repository, repository.revision if there else None, Path(folder)) - set(files.files)
        if not there:  # and nothing foreign is in the main branch, of which the new one is a copy
            api.create_branch(**of, branch=str(repository.revision))
        described = Path(folder) / "new"
        described.write_bytes(files.manifest())
        operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
        for name, path in {**files.files, MANIFEST: described}.items():
            operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)))
        told = f"sodp3d: {files.described.told()}"
        made = api.create_commit(**of, operations=operations, commit_message=told, revision=repository.revision)
    return str(made.commit_url)


def _stale(repository: Repository, revision: str | None, folder: Path) -> set[str]:
    """Files of the package that is there now. Raises InputError for files that are no package's."""
    from huggingface_hub import hf_hub_download

    there = set(_sizes(repository, revision))
    listed: set[str] = set()
    if MANIFEST in there:
        path = hf_hub_download(
            repository.name, MANIFEST, repo_type=repository.kind, revision=revision, local_dir=folder
        )
        listed = set(Manifest.read(Path(path).read_bytes(), repository.address).files)
    foreign = sorted(there - listed - {MANIFEST, *_THEIR_OWN})
    if foreign:
        raise InputError(
            f"{repository.address}: holds files that are no package's ({', '.join(foreign[:3])}), and nothing is "
            "written beside them; name a new repository."
        )
    return listed & there


def _sizes(repository: Repository, revision: str | None) -> dict[str, int]:
    """Bytes of each file in a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(repository.name, repo_type=repository.kind, revision=revision, recursive=True)
    return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}


@contextmanager
def _hub_errors(address: str) -> Iterator[None]:
    """Turn what goes wrong there into an InputError without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except InputError:
        raise
    except (HTTPError, HFValidationError, OSError, ValueError) as error:
        told = " ".join(str(error).split())[:500]
        if token := get_token():
            told = told.replace(token, "<token>")
        raise InputError(
            f"{address}: {type(error).__name__}: {told} Log in with `hf auth login` (or HF_TOKEN) where it is private, "
            "or not yours to write; the same command goes on."
        ) from None
