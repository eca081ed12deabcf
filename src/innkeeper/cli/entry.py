"""Where the `inn` script begins: ctrl-C ends it without a traceback even while it is still importing."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)


def run() -> None:
    from innkeeper.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
