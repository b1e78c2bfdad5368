"""The command line. Read `app.py` first; every command has a file of its own.

Nothing heavy is imported before a command needs it: `tttunet --help` takes a fraction of a second.
"""

from tttunet.cli.app import main

__all__ = ["main"]
