"""``python -m pelacli``, which is also how torchrun and accelerate start it."""

from __future__ import annotations

import sys

_INTERRUPTED = 130  # what shells expect after Ctrl-C


def main() -> None:
    """Run the command line; the one place that turns errors into a line and an exit code."""
    from pelacli.cli.app import make_app
    from pelacli.console import verbosity
    from pelacli.errors import PelaError

    try:
        code = make_app()(standalone_mode=False)
        if code == _INTERRUPTED:  # the parser turns Ctrl-C into this, without a word
            raise KeyboardInterrupt
    except PelaError as error:
        code = _fail(str(error), error.exit_code, error, verbosity.debug)
    except KeyboardInterrupt as error:
        code = _fail("interrupted", _INTERRUPTED, error, verbosity.debug)
    except BrokenPipeError:
        # The reader has gone (`pela report | head`): not an error, and nothing more to say.
        sys.stderr.close()
        code = 0
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what the parser raises
        if usage is not None:
            # Without a command the parser prints the help and has nothing more to say.
            text = usage()
            code = _fail(text + _hint(error), 2, error, verbosity.debug) if text else 2
        else:
            text = f"{type(error).__name__}: {error}"
            code = _fail(f"{text} (unexpected; --debug shows where)", 1, error, verbosity.debug)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, error: BaseException, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"pela: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _hint(error: Exception) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    return f" (see `{path} --help`)" if path else ""


if __name__ == "__main__":
    main()
