"""Code that is rewarded runs behind walls that are proved, or not at all; what is expected cannot be read or faked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.errors import NexusError
from nexus.rewards import code as code_module
from nexus.rewards import sandbox, sandbox_probe
from nexus.rewards.code import code, code_of, read_tests
from nexus.rewards.registry import build_rewards
from nexus.rewards.sandbox import Limits, Outcome, run_sandboxed
from tests.unit.test_rewards_registry import card

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = card("code")["options"]
LIMITS = Limits(**{name: value for name, value in OPTIONS.items() if name != "graded"})


def _reason() -> str:
    try:
        run_sandboxed({"a.py": ""}, arguments=["a.py"], stdin="", limits=LIMITS)
    except NexusError as error:
        return error.message
    return ""


needs_sandbox = pytest.mark.skipif(bool(_reason()), reason=_reason() or "there is a sandbox")


def reward(completion: str, tests: list[Any], **options: Any) -> float:
    return code(completion, {"tests": tests}, **({"finished": True} | OPTIONS | options))


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof takes seconds and has a test of its own."""
    monkeypatch.setattr(code_module, "insist_on_sandbox", lambda limits: None)


@needs_sandbox
def test_every_wall_holds() -> None:
    assert sandbox_probe.sandbox_problems(replace(LIMITS, memory_mib=256, file_mib=2)) == {}


@needs_sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_walls_hold_for_a_user_without_rights() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nexus.rewards.sandbox import *\nfrom nexus.rewards.sandbox_probe import *\n"
        f"print(sandbox_problems({LIMITS!r}))"
    )
    system = Path("/usr/bin/python3")  # root's own interpreter may lie where nobody else can go
    python = str(system) if system.is_file() else sys.executable
    arguments = [python, "-B", "-c", program, str(REPOSITORY)]
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout != b"True\n":
        pytest.skip(f"{python} is too old")
    done = subprocess.run(arguments, capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd="/")
    if any(
        word in done.stderr for word in ("E-SEC-05", "PermissionError", "ModuleNotFoundError: No module named 'nexus'")
    ):
        pytest.skip(f"a user without rights gets no sandbox here: {done.stderr[-300:]}")
    assert done.stdout == "{}\n", done.stderr


class TestProbesCanFail:
    """A hole in each wall is found."""

    def problems(self, probe: str, run: Callable[[str, Limits], Outcome]) -> str:
        limits = replace(LIMITS, wall_seconds=120.0, memory_mib=256, file_mib=2)
        return sandbox_probe.PROBES[probe](limits, run)

    def test_network(self) -> None:
        def without_walls(program: str, limits: Limits) -> Outcome:
            done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
            return Outcome("exit", done.returncode, done.stdout, done.stderr, 0.0)

        assert "reached" in self.problems("no network", without_walls)

    @needs_sandbox
    def test_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile

        seen = (*sandbox._visible(), tempfile.gettempdir())
        monkeypatch.setattr(sandbox, "_visible", lambda: seen)
        assert "secret" in self.problems("nothing outside is read or written", sandbox_probe._run)

    @needs_sandbox
    def test_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        allow = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
        monkeypatch.setattr(sandbox, "filter_program", lambda: allow)
        assert "fork" in self.problems("no further process", sandbox_probe._run)

    @needs_sandbox
    @pytest.mark.parametrize(
        ("probe", "change"),
        [("memory ends", {"memory_mib": 600}), ("disk ends", {"file_mib": 4}), ("disk ends", {"max_files": 99})],
    )
    def test_sizes(self, probe: str, change: dict[str, int]) -> None:
        assert "a program inside" in self.problems(
            probe, lambda program, limits: sandbox_probe._run(program, replace(limits, **change))
        )


def test_no_sandbox_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = f"open({str(ran)!r}, 'w').write('x')"
    monkeypatch.setattr(sandbox, "machine_problem", lambda: "it needs Linux, this is darwin")
    sandbox_probe.insist_on_sandbox.cache_clear()
    for refused in (
        lambda: reward(source, ["assert 1 == 1"]),
        lambda: build_rewards({"code": card("code")}),
        lambda: run_sandboxed({"a.py": source}, arguments=["a.py"], stdin="", limits=LIMITS),
    ):
        with pytest.raises(NexusError, match="none can be had here: it needs Linux") as caught:
            refused()
        assert (caught.value.code, caught.value.status) == ("E-SEC-05", 77)
    assert not ran.exists()


@needs_sandbox
def test_a_wall_that_cannot_be_built_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "filter_program", lambda: b"\xff" * 8)
    with pytest.raises(NexusError, match="prctl") as caught:
        run_sandboxed({"a.py": "print(1)"}, arguments=["a.py"], stdin="", limits=LIMITS)
    assert caught.value.code == "E-SEC-05"


@needs_sandbox
def test_a_probe_that_gets_through_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_probe, "PROBES", {"no leak": lambda limits, run: "a program inside got out"})
    sandbox_probe.insist_on_sandbox.cache_clear()
    with pytest.raises(NexusError, match="no leak: a program inside got out"):
        reward("def f(): pass", ["assert f() == None"])


TESTS = ["assert f(2) == 4", "assert [9] == [f(3)]", "assert f(0.5) == 0.25"]


@needs_sandbox
@pytest.mark.usefixtures("proved")
@pytest.mark.parametrize(
    ("completion", "graded", "strict"),
    [
        ("def f(x):\n    return x * x", 1.0, 1.0),
        (
            "<think>```python\ndef f(x): return 0\n```</think>So:\n```python\ndef f(x):\n    return x * x\n```\nDone.",
            1.0,
            1.0,
        ),
        ("import math\ndef f(x):\n    print('noise')\n    return x ** 2", 1.0, 1.0),
        ("def f(x):\n    return 4", 1 / 3, 0.0),
        ("def f(x):\n    return x * x if x > 2 else 1 / 0", 1 / 3, 0.0),
        # what is expected is not inside, so that none of these can earn more than they know
        ("class A:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return A()", 0.0, 0.0),
        ("class A(int):\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return A(1)", 0.0, 0.0),
        ("import os\nos._exit(0)", 0.0, 0.0),
        ("import sys\nsys.exit(0)", 0.0, 0.0),
        ("import builtins\nbuiltins.AssertionError = Exception\ndef f(x):\n    return None", 0.0, 0.0),
        ("import os\nfor n in range(3):\n    os.write(3, b'[0, true]\\n')\ndef f(x):\n    return True", 0.0, 0.0),
        ("import json\njson.dumps = lambda value: '[0, 1, 2]'\ndef f(x):\n    return 1", 0.0, 0.0),
        ("def f(x):\n    while True: pass", 0.0, 0.0),
        ("def f(x):\n    return open('main.py').read()", 0.0, 0.0),
        ("def f(x:", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("assert f(2) == 4", 0.0, 0.0),
    ],
)
def test_calls(completion: str, graded: float, strict: float) -> None:
    quick = {"cpu_seconds": 1}
    assert reward(completion, TESTS, graded=True, **quick) == pytest.approx(graded)
    assert reward(completion, TESTS, graded=False, **quick) == strict
    assert reward(completion, TESTS, finished=False) == 0.0


@needs_sandbox
@pytest.mark.usefixtures("proved")
def test_values_of_every_kind_come_back() -> None:
    source = "def f(x):\n    return x\nimport math"
    literals = ["None", "True", "(1, [2.5, 'ü\\n'], {3: {'a': {4, 5}}})", str(10**30), "[]", "{}", "-1.5"]
    assert reward(source, [f"assert f({text}) == {text}" for text in literals], graded=True) == 1.0
    assert reward(source, ["assert f(0.1) + f(0.2) == 0.3"], graded=True) == 1.0
    assert reward(source, ["assert f((1, 2)) == [1, 2]"], graded=True) == 0.0
    assert reward(source, ["assert f(math.nan) == 1"], graded=True) == 0.0


@needs_sandbox
@pytest.mark.usefixtures("proved")
def test_programs_with_input_and_output() -> None:
    tests = [{"stdin": "3\n", "stdout": "9\n"}, {"stdin": "4", "stdout": "16"}]
    assert reward("print(int(input()) ** 2, ' ')", tests) == 1.0
    assert reward("print(9)", tests, graded=True) == 0.5
    assert reward("print(9)", tests) == 0.0
    assert reward("print(int(input()) ** 2)\nraise SystemExit(1)", tests, graded=True) == 0.0
    assert reward("print('x' * 10 ** 6)", tests, graded=True) == 0.0


@pytest.mark.parametrize(
    "tests",
    [None, [], "assert f(1) == 1", [3], ["f(1)"], ["assert f(1)"], ["assert f(1) == g(1)"], ["assert f(1) > 1"],
     ["assert f(1) == 1; x = 2"], ["assert f(1) =="], ["assert 1 < f(1) == 2"], [{"stdin": "1"}],
     [{"stdin": 1, "stdout": "1"}]],
)  # fmt: skip
def test_tests_that_cannot_be_judged_outside_are_errors(tests: Any) -> None:
    with pytest.raises(NexusError) as caught:
        read_tests(tests)
    assert (caught.value.code, caught.value.status) == ("E-DAT-32", 65)


def test_code_is_the_last_block() -> None:
    assert code_of("```python\na\n```\ntext\n```\nb\n```") == "b\n"
    assert code_of("print(1)") == "print(1)"
    assert code_of("<think>```\nx\n```</think>y") == "y"
    assert code_of("```py\nx = '''\n  ```\n'''\n```") != ""
