"""The comparison of two checkouts finds what differs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# A package that writes and prints what pela would, and waits to be interrupted where asked to.
PROGRAM = """
import json, signal, sys, time
from pathlib import Path

if sys.argv[1:] == ["wait"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    Path("began").touch()
    time.sleep(60)
print(json.dumps({{"seconds": time.time(), "rank": {rank}, "path": str(Path.cwd())}}))
print("{words}", file=sys.stderr)
Path("out.jsonl").write_text('{{"step": 1, "samples_per_s": %f}}' % time.time())
sys.exit({code})
"""


@pytest.fixture
def modules(monkeypatch):
    """(parity, _parity_cases, _parity_facts), which are scripts and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _parity_cases
    import _parity_facts
    import parity

    return parity, _parity_cases, _parity_facts


@pytest.fixture
def compared(modules, monkeypatch, tmp_path, capsys):
    """Compare two made-up checkouts: compared(old's settings, new's) → (exit code, output)."""
    parity, cases, _ = modules
    group = cases.Group([cases.Case("g/one", ("go",))], "")
    monkeypatch.setattr(parity, "GROUPS", {"g": group})

    def call(old: dict[str, object], new: dict[str, object]) -> tuple[int, str]:
        folders = []
        for name, settings in (("old", old), ("new", new)):
            package = tmp_path / name / "pelacli"
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            program = PROGRAM.format(**({"rank": 1, "words": "", "code": 0} | settings))
            (package / "__main__.py").write_text(program)
            folders.append(str(package.parent))
        return parity.main(folders), capsys.readouterr().out

    return call


def test_times_and_the_working_directory_do_not_count(compared):
    code, out = compared({}, {})
    assert code == 0
    assert out.splitlines() == [f"{'g/one':<24} same", "1 cases, 0 differ"]


def test_the_first_difference_is_named(compared):
    code, out = compared({"rank": 1}, {"rank": 2})
    assert code == 1
    assert "different: stdout.rank: 1 → 2" in out
    assert out.endswith("1 cases, 1 differ\n")


def test_other_words_on_standard_error_are_shown_and_do_not_count(compared):
    code, out = compared({"words": "no such file"}, {"words": "there is no such file"})
    assert code == 0
    assert "same  (wording of standard error differs)" in out
    assert "new: there is no such file" in out


def test_a_case_that_fails_in_both_differs(compared):
    code, out = compared({"code": 1}, {"code": 1})
    assert code == 1
    assert "exit code 1, expected 0" in out


def test_kept_results_stand_in_for_a_checkout(compared, modules, tmp_path):
    parity = modules[0]
    compared({"rank": 1}, {"rank": 2})
    kept = str(tmp_path / "kept.json")
    assert parity.main([str(tmp_path / "old"), "--digests", kept]) == 0
    assert parity.main([kept, str(tmp_path / "old")]) == 0
    assert parity.main([kept, str(tmp_path / "new")]) == 1


def test_a_folder_without_the_package_is_refused(modules, tmp_path):
    with pytest.raises(SystemExit, match="not a checkout of pela"):
        modules[0].check(tmp_path)


def test_of_an_interrupted_command_only_the_exit_code_counts(modules, compared, monkeypatch):
    parity, cases, _ = modules
    stopped = cases.Case("g/stopped", ("wait",), code=1, interrupt_at="began")
    monkeypatch.setattr(parity, "GROUPS", {"g": cases.Group([stopped], "")})
    assert compared({"rank": 1}, {"rank": 2})[0] == 0


def test_a_tensor_is_its_name_shape_type_and_bytes(modules, tmp_path):
    _, _, facts = modules
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    nudged = tensor.copy()
    nudged[1, 2] = np.nextafter(nudged[1, 2], np.float32(9))
    forms = [tensor, nudged, tensor.reshape(3, 2), tensor.view(np.int32)]
    facts_of_forms = set()
    for form in forms:
        save_file({"up": form}, tmp_path / "a.safetensors")
        facts_of_forms.add(dict(facts.of_file(tmp_path / "a.safetensors", "a"))["a up"])
    assert len(facts_of_forms) == len(forms)


def test_the_header_of_safetensors_is_compared_without_what_is_ignored(modules, tmp_path):
    _, _, facts = modules
    file = tmp_path / "a.safetensors"
    header = json.dumps({"pela": "0.1", "samples": 24})
    save_file({"up": np.zeros(1)}, file, {"about": header})
    observed = dict(facts.of_file(file, "a"))
    assert observed["a header about.samples"] == "24"
    assert "a header about.pela" not in observed


def test_every_case_has_a_name_of_its_own_in_its_group(modules):
    _, cases, _ = modules
    names = [case.name for group in cases.GROUPS.values() for case in group.cases]
    assert len(set(names)) == len(names)
    assert all(c.name.startswith(f"{g}/") for g, group in cases.GROUPS.items() for c in group.cases)
