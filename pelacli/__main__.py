"""``python -m pelacli``, which is also how torchrun and accelerate start it."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from pelacli.system import processes, termination
from pelacli.system.termination import Terminated

if TYPE_CHECKING:
    from pelacli.cli.failures import Failure


def main() -> None:
    """Run the command line; the one place that turns errors into a line and an exit code."""
    try:
        termination.raise_on_signals()
        code = _run()
    except BrokenPipeError:
        # The reader has gone (`pela report | head`): not an error, and nothing more to say.
        sys.stderr.close()
        code = 0
    except (Exception, KeyboardInterrupt, Terminated) as error:
        from pelacli.cli import failures
        from pelacli.console import verbosity

        failure = failures.in_group(error, failures.describe(error))
        code = _fail(error, failure, verbosity.debug)
        if code:
            processes.end_with_group(code)
    termination.end_quietly()
    gc.freeze()  # else Python looks through all that torch has made once more, for seconds
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> object:
    import logging

    from pelacli.cli import failures
    from pelacli.cli.app import make_app
    from pelacli.cli.options import check_arguments

    # What torch tells developers of other libraries (torchao's, say) is not for users.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    check_arguments(sys.argv[1:])
    code = make_app()(standalone_mode=False)
    if code == failures.INTERRUPTED:  # the parser turns Ctrl-C into this, without a word
        raise KeyboardInterrupt
    return code


def _fail(error: BaseException, failure: Failure, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    from pelacli.messages import short_line

    for message in filter(None, (failure.message, *failure.others)):
        print(f"pela: error: {short_line(message)}", file=sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    main()
