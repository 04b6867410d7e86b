"""The messaging protocol's own suite, `jupyter_kernel_test`: what plain ipykernel passes, the proxy
passes."""

import unittest

import jupyter_kernel_test as suite

# The suite allows 0.1 s between messages, which a busy machine does not always keep.
TRIES = 3


class Outcomes(unittest.TestResult):
    """How each test ended: `passed`, `skipped`, or why it failed."""

    def __init__(self):
        super().__init__()
        self.of = {}
        self.subtests = 0

    def stopTest(self, test):
        super().stopTest(test)
        self.of.setdefault(test._testMethodName, "passed")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        # A part of a test may be skipped too: it has no name of its own.
        if not hasattr(test, "test_case"):
            self.of[test._testMethodName] = "skipped"

    def failed(self, test, error):
        self.of[getattr(test, "_testMethodName", str(test))] = self._exc_info_to_string(error, test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.failed(test, error)

    addError = addFailure

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        self.subtests += 1
        if error is not None:
            self.failed(test, error)


class Python:
    """Every attribute of the suite, for Python. Source: its own test of ipykernel."""

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import ran", "matches": {"random"}},
        {"text": "prin", "matches": {"print"}},
    ]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "open"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    support_iopub_welcome = True


def outcomes(kernel_name, tests=None):
    """How the suite ends for a kernel, or some of its tests."""
    result, chosen = Outcomes(), unittest.TestSuite()
    for base in (suite.KernelTests, suite.IopubWelcomeTests):
        kind = type(base.__name__, (Python, base), {"kernel_name": kernel_name})
        names = unittest.defaultTestLoader.getTestCaseNames(kind)
        chosen.addTests(kind(name) for name in names if tests is None or name in tests)
    chosen.run(result)
    return result


def settled(kernel_name, tests=None):
    """`outcomes`, with every test that failed tried again: of ipykernel and of the proxy alike, as
    the suite's own patience is what a busy machine breaks."""
    result = outcomes(kernel_name, tests)
    for _ in range(TRIES - 1):
        bad = {name for name, how in result.of.items() if how not in ("passed", "skipped")}
        if not bad:
            break
        print(f"{kernel_name}, tried again:", *(f"{name}: {result.of[name]}" for name in bad), sep="\n")
        result.of.update(outcomes(kernel_name, bad).of)
    return result


def test_whatever_ipykernel_passes_the_proxy_passes(cluster, record_property):
    plain = settled("python3")
    expected = {name for name, how in plain.of.items() if how == "passed"}
    # Every test of `KernelTests`, and that of the welcome.
    assert len(expected) >= 13, "\n".join(how for how in plain.of.values() if how != "passed")
    ours = settled("callboard")
    print("ipykernel:", counts(plain), "proxy:", counts(ours))
    bad = {name: how for name, how in ours.of.items() if name in expected and how != "passed"}
    assert not bad, "\n".join(bad.values())
    assert expected <= ours.of.keys()


def counts(result):
    passed = sum(how == "passed" for how in result.of.values())
    skipped = sum(how == "skipped" for how in result.of.values())
    return f"{passed} of {len(result.of)} passed, {skipped} skipped, {result.subtests} subtests"
