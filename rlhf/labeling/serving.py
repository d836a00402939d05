"""Serves the pages with uvicorn: what must be right before, the first link, and a warning without TLS."""

import socket
import ssl
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rlhf.errors import InputError
from rlhf.labeling import people
from rlhf.labeling.arguments import LabelArguments
from rlhf.labeling.store import Store

if TYPE_CHECKING:  # its packages are an extra
    from rlhf.labeling.pages import Flag

PACKAGES = ("starlette", "uvicorn", "jinja2", "markdown_it")
LOCAL = ("127.0.0.1", "::1", "localhost")
ADMIN = "you"


def check_packages() -> None:
    """Raises InputError if a package of the extra `label` is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"The page needs the package {missing[0]}. Run pip install 'instruct-rlhf[label]'.")


def find_flags(path: str | None) -> "list[Flag]":
    """Returns the flags of a file, or those of the paper. Raises InputError for a file that cannot be read."""
    from rlhf.labeling.pages import read_flags

    return read_flags(path) if path else read_flags()


def check_certificate(args: LabelArguments) -> None:
    """Raises InputError if the certificate or its key cannot be used."""
    if args.ssl_certfile:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
        except OSError as error:
            raise InputError(
                f"{args.ssl_certfile} and its key cannot be read ({error.strerror or error}). Give PEM files."
            ) from error


def listen(args: LabelArguments) -> socket.socket:
    """Returns a socket that listens; browsers that come early wait for the page.

    Raises:
        InputError: the port is in use, or is not for this user.
    """
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listening = socket.create_server((args.host, args.port), family=family)
    except OSError as error:
        raise InputError(
            f"{args.host}:{args.port} cannot be listened on: {error.strerror or error}. Stop what listens there, or "
            f"give another --port, such as {args.port + 1}."
        ) from error
    # Connections take this over. asyncio sets it for sockets of its own only, and without it an answer waits 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def serve(store: Store, flags: "Sequence[Flag]", args: LabelArguments, listening: socket.socket) -> None:
    """Serves the pages until they are interrupted."""
    import uvicorn

    from rlhf.labeling.app import create_app

    https = args.address.startswith("https://")
    if args.host not in LOCAL and not https:
        print(
            f"WARNING: {args.host} is open to the network WITHOUT TLS. Whoever is on the way reads log-in links, "
            "cookies and labels.\nGive --ssl_certfile and --ssl_keyfile, or listen on 127.0.0.1 behind a proxy with "
            "TLS, whose address is --url https://...",
            file=sys.stderr,
            flush=True,
        )
    name, token = admin_link(store)
    print(f"\nOpen this link to begin as {name}, an admin. It works once, within seven days:\n")
    print(f"    {args.address}/login?token={token}\n")
    print(f"Labels are kept in {args.path}. Ctrl-C stops the server, and nothing is lost.", flush=True)
    app = create_app(store, flags, https=https)
    config = uvicorn.Config(
        app,
        log_config=None,  # its own would close the handlers of all other loggers in this process
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=args.ssl_certfile,
        ssl_keyfile=args.ssl_keyfile,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the labels are in {args.path}") from None


def admin_link(store: Store) -> tuple[str, str]:
    """Returns the name of the first admin who is not revoked, who is added if there is none, and a new link."""
    known = people.labelers(store)
    admins = [one.name for one in known if one.role == "admin" and not one.revoked]
    if admins:
        return admins[0], people.new_link(store, admins[0])
    names = {one.name for one in known}
    name = next(name for name in (ADMIN, *(f"{ADMIN} {i}" for i in range(2, len(names) + 3))) if name not in names)
    return name, people.add_labeler(store, name, "admin")
