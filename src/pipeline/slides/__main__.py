"""``python -m pipeline.slides VERB …``: the command line of the slide stage; each verb has a file of its own."""

from __future__ import annotations

import argparse
import sys

from pipeline.slides import exchange, inspect

VERBS = {"export": exchange, "inspect": inspect}  # each module: HELP, add_arguments(parser), run(options) -> exit code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.slides", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, module in VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=module.HELP, description=module.__doc__))
    options = parser.parse_args(arguments)
    return VERBS[options.verb].run(options)


if __name__ == "__main__":
    sys.exit(main())
