"""Open a page in the browser: drop a photograph, see the best classes and where a clicked pixel looks.

Two models can be compared side by side. Weights are those of the name's tag (such as ``dinat_nano.digits``), those of
a checkpoint file, or random ones, which the page says. Nothing leaves the machine.
"""

import argparse
import ipaddress
import sys
import threading

from .cli import MOST_CLASSES, up_to
from .signals import sigterm_raises, terminated

MODEL = "dinat_nano.digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 opens it to the network")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at")
    parser.add_argument("--model", metavar="NAME", default=MODEL, help="model that the page starts with")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights of that model")
    parser.add_argument(
        "--num-classes", type=up_to(MOST_CLASSES), metavar="N", help="classes of the checkpoint's classifier"
    )
    parser.add_argument(
        "--weights",
        choices=("local", "published"),
        default="local",
        help="trained weights to offer: those on this machine, or all, downloaded when they are chosen",
    )


def run(args: argparse.Namespace) -> int:
    from .serving import server

    server.prepare()
    server.check_port(args.host, args.port)

    from .serving.gallery import Gallery, Source, names
    from .serving.page import CSS, Page, theme

    gallery, start = Gallery(), Source.of(args.model, args.checkpoint, args.num_classes)
    # Now, so that what is wrong with them is said here and not on the page.
    gallery.get(start)
    with sigterm_raises(terminated), server.temporary_files():
        blocks = Page(gallery, names(args.weights == "published"), start).build()
        with server.serving(blocks, args.host, args.port, theme(), CSS) as address:
            if not _is_loopback(args.host):
                print(f"attnzoo app: anyone who reaches {args.host}:{args.port} can use this page", file=sys.stderr)
            print(f"{address} (Ctrl-C ends it)", flush=True)
            wait()
    return 0


def wait() -> None:
    """Does not return; the server has threads of its own."""
    threading.Event().wait()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
