"""What happens on the device: make keys that never leave it, and take what the operator gives back."""

from collections.abc import Mapping
from pathlib import Path

from fedge.deploy import _files, bundle_file, federation, pki, stock_node
from fedge.deploy.federation import Enrolment
from fedge.deploy.signing_request import write_request
from fedge.durable import replace_file
from fedge.errors import PayloadError, RefusedError, SetupError
from fedge.signing import SigningKey, fingerprint, load_key

REQUEST = "request.json"
_KEYS = (bundle_file.KEY, bundle_file.SIGNING, bundle_file.NODE, bundle_file.NODE_PUBLIC)


def make_request(name: str, folder: Path, *, stock: bool = False) -> str:
    """Make keys in ``folder`` and ``request.json``, a request to enrol them; gives the key's fingerprint.

    With keys already there, a new request for them: so a certificate is renewed.

    Args:
        name: of this device.
        folder: new, or made by an earlier call, or a bundle.
        stock: make the key of a stock Flower SuperNode, too (with new keys only).

    Raises:
        PayloadError: it is no name of a device.
        SetupError: something else is in the folder, the keys are another device's, or it cannot be written.
    """
    folder = folder.resolve()
    if not (folder / bundle_file.KEY).exists():
        return _make_keys(pki.check_name(name), folder, stock)
    if (folder / bundle_file.DEVICE).exists() and Enrolment.load(folder).name != name:
        raise SetupError(f"{folder} is the bundle of {Enrolment.load(folder).name}, not of {name}")
    has_node = (folder / bundle_file.NODE_PUBLIC).exists()
    if stock and not has_node:
        raise SetupError(f"the keys in {folder} were made without --stock; make new ones in another folder")
    signing = load_key(folder / bundle_file.SIGNING)
    public = _files.read(folder / bundle_file.NODE_PUBLIC, bundle_file.MAX_FILE_BYTES) if has_node else None
    node = None if public is None else stock_node.point_of(public)
    request = write_request(name, federation.load_private(folder / bundle_file.KEY), signing, node)
    _replace(folder / REQUEST, request)
    return fingerprint(signing.public)


def accept(file: Path, folder: Path) -> Enrolment:
    """Unpack an enrolment file into ``folder``: a new one, or the one in which the request was made.

    No key that is there is ever replaced; a certificate is, by a newer one for the same key.

    Raises:
        PayloadError: it is no enrolment file.
        SetupError: it is for other keys than those in ``folder``, or of another federation than it.
    """
    folder = folder.resolve()
    files = bundle_file.unpack(_files.read(file, bundle_file.MAX_BUNDLE_BYTES))
    enrolment = _check(files, folder, str(file))
    if not folder.exists() or not any(folder.iterdir()):
        _files.create_folder(folder, files)
        return enrolment
    try:
        with _files.locked(folder):
            _refuse_others(files, folder, enrolment)
            for name in sorted(files, key=lambda n: n == bundle_file.CERTIFICATE):  # the certificate last
                if not (folder / name).exists() or name not in _KEYS:
                    replace_file(folder / name, files[name])
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from None
    return enrolment


def _make_keys(name: str, folder: Path, stock: bool) -> str:
    key, signing = pki.new_key(), SigningKey.generate()
    files = {
        bundle_file.KEY: pki.key_pem(key),
        bundle_file.SIGNING: signing.pem(),
    }
    node = None
    if stock:
        files[bundle_file.NODE], files[bundle_file.NODE_PUBLIC] = stock_node.new_node_key()
        node = stock_node.point_of(files[bundle_file.NODE_PUBLIC])
    files[REQUEST] = write_request(name, key, signing, node)
    _files.create_folder(folder, files)
    return fingerprint(signing.public)


def _check(files: Mapping[str, bytes], folder: Path, what: str) -> Enrolment:
    """Its parts belong together, and to a private key in it or in ``folder``."""
    enrolment = Enrolment.parse(files[bundle_file.DEVICE], folder)
    certificate = pki.parse_certificate(files[bundle_file.CERTIFICATE], bundle_file.CERTIFICATE)
    issuer = pki.parse_certificate(files[bundle_file.AUTHORITY], bundle_file.AUTHORITY)
    federation.check_owner(enrolment, certificate, what)
    pki.check_certificate(certificate, issuer, certificate.not_valid_before_utc.timestamp(), what)
    if bundle_file.KEY in files:
        key = pki.parse_key(files[bundle_file.KEY], bundle_file.KEY)
    elif (folder / bundle_file.KEY).exists():
        key = federation.load_private(folder / bundle_file.KEY)
    else:
        raise SetupError(f"{what} holds no keys; unpack it into the folder in which its request was made")
    pki.check_pair(certificate, key, what)
    return enrolment


def _refuse_others(files: Mapping[str, bytes], folder: Path, enrolment: Enrolment) -> None:
    for name in _KEYS:
        path = folder / name
        if name in files and path.exists() and _files.read(path, bundle_file.MAX_FILE_BYTES) != files[name]:
            raise SetupError(f"{path} is another key; nothing is overwritten: unpack into another folder")
    if not (folder / bundle_file.DEVICE).exists():
        return
    try:
        old = Enrolment.parse(_files.read(folder / bundle_file.DEVICE, federation.MAX_JSON_BYTES))
    except PayloadError as error:
        raise SetupError(f"{folder / bundle_file.DEVICE} cannot be used: {error}") from None
    if (old.federation, old.name) != (enrolment.federation, enrolment.name):
        raise RefusedError(f"{folder} is the bundle of {old.name} in federation {old.federation[:8]}")


def _replace(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None
