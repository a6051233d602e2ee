"""Authorities in a folder of their own: copying to a daemon's folder what it needs, and moving them there."""

import os
from collections.abc import Iterable
from pathlib import Path

from pki.errors import InvalidAuthority
from pki.files import (
    OF_OTHERS,
    REPLACED,
    copy_file,
    key_path,
    locked,
    make_folder,
    read_bytes,
    replace_file,
    sync_folder,
)
from pki.layout import PkiLayout


def require_apart(folder: Path, authority: Path) -> None:
    """Raise an error if the authorities' folder is the daemon's, or within it.

    Raises:
        InvalidAuthority: it is.
    """
    if authority.resolve().is_relative_to(folder.resolve()):
        raise InvalidAuthority(authority, folder)


def copy_public(files: PkiLayout) -> None:
    """Copy the authorities' public files to a daemon's folder, and write the path of each folder into the other.

    Only one process at a time may do this.
    """
    make_folder(files.path)
    copies = {
        files.server_authority: files.server_ca,
        files.client_authority: files.client_ca,
        files.authority_crl: files.client_crl,
    }
    for source, copy in copies.items():
        if source.exists():
            replace_file(copy, read_bytes(source, "put it back"))
    _introduce(files)


def move_authority(files: PkiLayout, authority: Path) -> None:
    """Move the authorities' keys, their inventory, and the pairs of users and of other daemons to another folder.

    The daemon's own pair stays, with copies of the authorities' certificates and of the list of revoked certificates. A
    move that was interrupted is finished by the next one to the same folder.

    Args:
        files: the files of a folder with authorities.
        authority: the folder to move them to, which must not have other authorities.

    Raises:
        AlreadyExists: one of the files exists there with other content; nothing is removed then.
        InvalidAuthority: it is within the daemon's folder.
        Missing: there is no authority to move, or a file cannot be read.
    """
    authority = authority.absolute()
    require_apart(files.path, authority)
    keys = [key_path(files.server_ca), key_path(files.client_ca)]
    stay = [files.server_ca, files.client_ca, files.client_crl]
    with locked(files.client_ca):
        leave = [path for name in OF_OTHERS for path in sorted((files.path / name).rglob("*")) if path.is_file()]
        leave += [path for path in (files.client_inventory, *keys) if path.exists()]
        for source in (*stay, *leave):
            if source.exists():
                copy_file(source, authority / source.relative_to(files.path))
        _introduce(PkiLayout(files.path, authority), files.daemons_named())
        files.daemons.unlink(missing_ok=True)
        for source in leave:  # the locked key last: without it, the next move could not finish this one
            source.unlink()
    for name in OF_OTHERS:
        for folder in (files.path / name / REPLACED, files.path / name):
            if folder.is_dir() and not os.listdir(folder):
                folder.rmdir()
    sync_folder(files.path)


def _introduce(files: PkiLayout, others: Iterable[Path] = ()) -> None:
    """Write the path of each folder into the other, with the paths of further daemons' folders."""
    folders = dict.fromkeys((*files.daemons_named(), *others, files.path.absolute()))
    replace_file(files.daemons, b"".join(os.fsencode(folder) + b"\n" for folder in folders))
    replace_file(files.location, os.fsencode(files.authority) + b"\n")
