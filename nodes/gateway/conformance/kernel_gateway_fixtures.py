"""A pytest plugin: the fixtures of Kernel Gateway's own tests, pointed at a running Callboard gateway.

`CALLBOARD_TEST_URL` and `CALLBOARD_TEST_TOKEN` name it. `EXCLUDED` names every test that is not run, and
why; all others are run and have to pass.
"""

import asyncio
import inspect
import os

import pytest
from tornado.escape import json_decode, url_escape
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

CONFIGURED = "sets an option of Kernel Gateway's that Callboard does not have"
UNIT = "tests a Python class of Kernel Gateway's, not what is spoken"
SEEDED = "runs a notebook in every new kernel (`seed_uri`), which Callboard does not"
BASE_URL = "mounts the server below another path, which with Callboard a reverse proxy does"
CLOSED = "wants lists to be forbidden; Callboard shows each user its own"

# Every test that is not run, or file or folder of them, with the reason.
EXCLUDED = {
    "test_gatewayapp.py": UNIT,
    "test_mixins.py": UNIT,
    "notebook_http": UNIT,
    "test_notebook_http.py": "tests the mode that makes a notebook's cells an HTTP interface; Callboard has none",
    "TestDefaults::test_check_origin": "changes the allowed origin while the server runs",
    "TestDefaults::test_config_bad_api_value": CONFIGURED,
    "TestDefaults::test_cors_headers": "chooses the CORS headers by options; Callboard's follow from --allow-origin",
    "TestDefaults::test_cors_options_headers": "chooses the CORS headers by options, as above",
    "TestDefaults::test_max_kernels": "sets the number of kernels to 1 while the server runs",
    "TestDefaults::test_no_discovery": CLOSED,
    "TestDefaults::test_json_errors": CLOSED,
    "TestDefaults::test_kernel_env": "passes variables on to the kernel, one of them by an option",
    "TestCustomDefaultKernel::test_default_kernel_name": CONFIGURED,
    "TestForceKernel::test_force_kernel_name": CONFIGURED,
    "TestPrespawnKernels::test_prespawn_count": CONFIGURED,
    "TestPrespawnKernels::test_prespawn_max_conflict": UNIT,
    "TestBaseURL::test_base_url": BASE_URL,
    "TestRelativeBaseURL::test_base_url": BASE_URL,
    "TestSeedURI::test_seed": SEEDED,
    "TestRemoteSeedURI::test_seed": SEEDED,
    "TestBadSeedURI::test_seed_error": SEEDED,
    "TestBadSeedURI::test_seed_kernel_not_available": UNIT,
    "TestKernelLanguageSupport::test_seed_language_support": SEEDED,
    "TestSessionApi::test_session_api": UNIT,
}

URL = os.environ.get("CALLBOARD_TEST_URL", "")
TOKEN = os.environ.get("CALLBOARD_TEST_TOKEN", "")
# The token that the tests configure stands for the one that the gateway's user has.
THEIR_TOKEN = "fake-token"


def pytest_collection_modifyitems(config, items):
    unused = set(EXCLUDED)
    kept, left_out = [], []
    for item in items:
        test = item.nodeid.split("[")[0].split("::", 1)[1]
        place = item.path.relative_to(config.rootpath / "tests").parts[0]
        reasons = {place, test} & set(EXCLUDED)
        unused -= reasons
        (left_out if reasons else kept).append(item)
    if unused:
        raise pytest.UsageError(f"there are no such tests to exclude: {sorted(unused)}")
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 60))
    return True


def _with_token(headers):
    headers = {"Authorization": f"token {TOKEN}", **(headers or {})}
    return {name: value.replace(THEIR_TOKEN, TOKEN) for name, value in headers.items()}


def _url(parts):
    return f"{URL}/{url_escape('/'.join(parts), plus=False)}"


@pytest.fixture
def jp_base_url():
    return "/"


@pytest.fixture
def jp_http_port():
    return int(URL.rsplit(":", 1)[1])


@pytest.fixture
def jp_fetch():
    async def fetch(*parts, headers=None, **options):
        request = HTTPRequest(_url(parts), headers=_with_token(headers), allow_nonstandard_methods=True, **options)
        return await AsyncHTTPClient().fetch(request)

    yield fetch

    async def clean_up():
        for kernel in json_decode((await fetch("api", "kernels")).body):
            await fetch("api", "kernels", kernel["id"], method="DELETE")

    asyncio.run(clean_up())


@pytest.fixture
def jp_ws_fetch():
    async def connect(*parts, headers=None):
        url = _url(parts).replace("http", "ws", 1)
        return await websocket_connect(HTTPRequest(url, headers=_with_token(headers)))

    return connect


@pytest.fixture
def jp_web_app():
    """The settings of the server, as far as they are those of every Callboard gateway."""

    class Settings(dict):
        def __setitem__(self, name, value):
            assert (name, value) == ("kg_list_kernels", True), f"no option of Callboard's: {name}"

    class App:
        settings = Settings()

    return App()
