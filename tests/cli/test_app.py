"""What all commands have in common, and the options that scripts may rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import typer

import pelacli
from pelacli.cli.app import make_app

OPTIONS = Path(__file__).parent / "snapshots" / "options.json"


def test_no_option_goes_or_comes_unnoticed():
    """Options may be added; set PELA_SNAPSHOT=1 to write the file anew."""

    def options(command):
        if hasattr(command, "commands"):
            return {name: options(child) for name, child in sorted(command.commands.items())}
        return sorted(name for p in command.params for name in [*p.opts, *p.secondary_opts])

    now = options(typer.main.get_command(make_app()))
    if os.environ.get("PELA_SNAPSHOT"):
        OPTIONS.write_text(json.dumps(now, indent=1) + "\n")
    frozen = json.loads(OPTIONS.read_text())

    def missing(old, new, where=""):
        if isinstance(old, list):
            return [f"{where} {name}" for name in old if name not in new]
        return [x for k in old for x in missing(old[k], new.get(k, {}), f"{where} {k}")]

    assert not missing(frozen, now)
    assert frozen == now, "an option was added: PELA_SNAPSHOT=1 pytest tests/cli/test_app.py"


def test_commands_are_listed_in_the_order_of_a_pipeline():
    app = typer.main.get_command(make_app())
    order = ["decompose", "heal", "pretrain", "finetune", "eval", "report", "export", "import",
             "push", "run", "verify", "recipes"]  # fmt: skip
    assert list(app.commands) == order
    assert list(app.commands["recipes"].commands) == ["list", "show", "copy", "check", "schema"]


def test_without_a_command_the_help_is_printed_and_no_error(pela):
    for args in ((), ("recipes",)):
        code, out, err = pela(*args)
        assert code == 2
        assert "Usage: " in out + err
        assert "error" not in err.lower()


def test_the_version_is_printed_by_python_dash_m_too(pela):
    assert pela("--version")[1] == f"pela {pelacli.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "pelacli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"pela {pelacli.__version__}\n")


def test_debug_shows_the_traceback_and_nothing_else_does(pela, here):
    ask = ("decompose", "no_such_model", "--ratio", "0.5")
    assert "Traceback" not in pela(*ask)[2]
    assert "Traceback" in pela(*ask, "--debug")[2]


def test_output_has_no_colour_off_a_terminal(pela, artefact):
    assert "\x1b" not in pela("report", "a")[1]


def test_verbose_adds_messages_and_leaves_the_data_alone(pela, here):
    ask = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.5", "--dry-run", "--json")
    code, out, err = pela(*ask, "-v")
    assert code == 0
    assert json.loads(out)["artefact"] is None
    assert "no calibration samples" in err
