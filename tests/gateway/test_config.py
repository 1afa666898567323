"""What a configuration says, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import config
from gateway.config import ConfigError, parse, split_listen
from gateway.policy.routing import ROUTERS, make_router

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "digits" / "serve.toml"
PATH = Path("/srv/serve.toml")
MODEL = """
[[models]]
name = "digits"
[[models.replicas]]
name = "d"
spawn = "d.toml"
"""


def read(text, environ=None, overrides=(), **options):
    return parse(text, PATH, environ or {}, overrides, **options)


def problems(text, environ=None, overrides=(), **options):
    with pytest.raises(ConfigError) as caught:
        read(text, environ, overrides, **options)
    return str(caught.value).splitlines()


def test_the_example_is_read_with_its_defaults():
    found = config.load(EXAMPLE, {})
    assert found.server.listen == "127.0.0.1:8080"
    assert found.server.max_body == 64 * 2**20
    assert [model.name for model in found.models] == ["digits"]
    replicas = found.models[0].replicas
    assert [replica.name for replica in replicas] == ["digits-0", "digits-1"]
    assert replicas[0].spawn == EXAMPLE.parent / "digits.replica.toml"
    assert found.path == EXAMPLE


def test_a_replica_without_count_keeps_its_name_and_knows_its_socket():
    replica = read(MODEL).models[0].replicas[0]
    assert replica.name == "d"
    assert replica.spawn == Path("/srv/d.toml")
    assert replica.socket(Path("/run/x")) == "unix:/run/x/d.sock"


def test_a_static_replica_is_where_it_says():
    text = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\naddress = "tcp:[::1]:7001"\n'
    assert read(text).models[0].replicas[0].socket(Path("/run/x")) == "tcp:[::1]:7001"


def test_every_problem_is_reported_with_its_line_its_key_and_what_was_expected():
    text = """[server]
listne = "x"
workers = 0
drain_s = nan
[[models]]
name = "a b"
slo_ms = "fast"
[[models.replicas]]
name = "r"
[[models.replicas]]
name = "s"
kind = "http"
address = "tcp:h:1"
weight = -1
"""
    assert problems(text) == [
        '/srv/serve.toml:2: server.listne: unknown key; did you mean "listen"?',
        "/srv/serve.toml:3: server.workers: expected a whole number from 1 to 256, got 0",
        "/srv/serve.toml:4: server.drain_s: expected a number from 0 up to 86400, got nan",
        "/srv/serve.toml:6: models[0].name: expected a name of letters, digits and . _ -, got"
        ' "a b"',
        '/srv/serve.toml:8: models[0].replicas[0]: expected either "spawn" (a file) or "address"'
        " (where it listens)",
        "/srv/serve.toml:14: models[0].replicas[1].weight: expected a number from 0 up to 1e+06,"
        " got -1",
        '/srv/serve.toml:7: models[0].slo_ms: expected a number above 0 up to 1e+07, got "fast"',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "serve.toml:1: models: there is nothing to serve; add a [[models]] table with a name"),
        (
            "[server",
            "serve.toml:1: this is not TOML: Expected ']' at the end of a table declaration",
        ),
        ("server = 3" + MODEL, "serve.toml:1: server: expected a table"),
        ("models = 3", "serve.toml:1: models: expected an array of tables: [[models]]"),
        ('[[models]]\nname = "m"', "serve.toml:1: models[0]: a model needs at least one"),
        ("[[models]]\n" + MODEL, "models[0].name: missing; expected a name of letters, digits"),
        (MODEL + "max_queue = 3", "max_queue: unknown key; known here: address, command"),
        (MODEL + MODEL, 'models[1].name: another model is named "digits"'),
        (MODEL + '[[models.replicas]]\nname = "d"\naddress = "tcp:h:1"', 'named "d" too'),
        (MODEL + 'address = "tcp:h:1"', 'expected either "spawn"'),
        (MODEL.replace("spawn", 'kind = "http"\nspawn'), "an http replica is not spawned"),
        (MODEL.replace('spawn = "d.toml"', 'count = 2\naddress = "tcp:h:1"'), "one by one"),
        (MODEL.replace('spawn = "d.toml"', 'address = "h:1"'), 'such as "tcp:h:7001", got "h:1"'),
        ('[server]\nadmin = "127.0.0.1:8080"\n' + MODEL, "operators need an address of their own"),
        ('[server]\nlisten = "8080"\n' + MODEL, 'expected an address: "127.0.0.1:8080"'),
        ('[server]\nmax_body = "64 XB"\n' + MODEL, 'such as "64 MiB", got "64 XB"'),
        ("[server]\nworkers = true\n" + MODEL, "got true"),
        ('[server]\nadmin_key = "short"\n' + MODEL, "at least 8 printable characters"),
    ],
)
def test_what_cannot_be_served_is_refused(text, expected):
    found = problems(text)
    assert any(expected in line for line in found), found


def test_a_batch_must_fit_the_queue():
    text = MODEL.replace("[[models.", "max_queue = 8\nmax_batch_size = 9\n[[models.")
    assert "must hold one batch of max_batch_size = 9 rows" in problems(text)[0]


def test_names_that_count_makes_may_not_meet_others():
    text = MODEL.replace("spawn", "count = 2\nspawn") + (
        '[[models.replicas]]\nname = "d-1"\nspawn = "d.toml"\n'
    )
    assert problems(text) == [
        '/srv/serve.toml:9: models[0].replicas[1].name: a replica of "digits" is named "d-1" too'
    ]


def test_files_that_are_not_there_are_refused_where_they_matter(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text(MODEL)
    with pytest.raises(ConfigError, match=r'serve.toml:6: .*spawn: there is no file "d.toml"'):
        config.load(path, {})
    (tmp_path / "d.toml").touch()
    assert config.load(path, {}).models[0].replicas[0].spawn == tmp_path / "d.toml"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read it: No such file"):
        config.load(tmp_path / "none.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        config.load(tmp_path / "binary.toml", {})


# -------------------------------------------------------------------------------------- overrides


def test_the_environment_overrides_the_file_and_flags_override_both():
    environ = {
        "PENSTOCK_SERVER__WORKERS": "2",
        "PENSTOCK_SERVER__LISTEN": "0.0.0.0:80",
        "PENSTOCK_MODELS__DIGITS__SLO_MS": "50",
        "PENSTOCK_MODELS__DIGITS__REPLICAS__D__WEIGHT": "2.5",
        "PENSTOCK_SERVER__MAX_BODY": "1 MiB",
    }
    found = read("[server]\nworkers = 1\n" + MODEL, environ, ["server.workers=3"])
    assert found.server.workers == 3
    assert found.server.listen == "0.0.0.0:80"
    assert found.server.max_body == 2**20
    assert found.models[0].slo_ms == 50
    assert found.models[0].replicas[0].weight == 2.5


def test_models_are_named_by_name_or_position_in_flags():
    flags = ["models.digits.retries=0", "models[0].max_queue=7", 'models."digits".slo_ms=1.5']
    model = read(MODEL, {}, flags).models[0]
    assert (model.retries, model.max_queue, model.slo_ms) == (0, 7, 1.5)


def test_a_variable_finds_a_name_with_signs_that_variables_cannot_have():
    text = MODEL.replace('"digits"', '"Digits-v1.5"')
    model = read(text, {"PENSTOCK_MODELS__DIGITS_V1_5__RETRIES": "1"}).models[0]
    assert model.retries == 1


def test_variables_of_others_are_left_alone():
    # Kubernetes sets such ones for a service that is named penstock.
    environ = {"PENSTOCK_PORT": "tcp://1.2.3.4:80", "PENSTOCK_SERVICE_HOST": "1.2.3.4"}
    assert read(MODEL, environ) == read(MODEL)


def test_a_string_key_takes_the_text_as_it_is():
    assert read(MODEL, {}, ["server.admin_key=12345678"]).server.admin_key == "12345678"
    assert read(MODEL, {}, ["server.admin_key='12345678'"]).server.admin_key == "12345678"


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({"PENSTOCK_SERVER__WORKRES": "2"}, [], 'environment variable PENSTOCK_SERVER__WORKRES:'
         ' server.workres: unknown key; did you mean "workers"?'),
        ({"PENSTOCK_SERVER__WORKERS": "x"}, [], 'environment variable PENSTOCK_SERVER__WORKERS:'
         ' server.workers: expected a whole number from 1 to 256, got "x"'),
        ({}, ["server.workers=0"], "--set server.workers=0: server.workers: expected a whole"
         " number from 1 to 256, got 0"),
        ({}, ["workers"], "--set workers: expected KEY=VALUE, such as server.workers=2"),
        ({}, ["models.x.retries=1"], "--set models.x.retries=1: models.x.retries: expected the name"
         " of one of models after it: digits"),
        ({}, ["server=1"], "--set server=1: server: this is a table; name a key in it"),
        ({}, ["server.workers.x=1"], '--set server.workers.x=1: server.workers.x: "server.workers"'
         " has no keys"),
    ],
)  # fmt: skip
def test_a_wrong_override_names_the_flag_or_the_variable(environ, flags, expected):
    assert problems(MODEL, environ, flags) == [expected]


def test_an_error_has_its_parts():
    with pytest.raises(ConfigError) as caught:
        read("[server]\nworkers = 0\n" + MODEL)
    error = caught.value
    assert (error.file, error.line, error.key) == (PATH, 2, "server.workers")
    assert error.expected == "expected a whole number from 1 to 256, got 0"


# --------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:8080", ("localhost", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("unix:/run/p.sock", "/run/p.sock"),
    ],
)
def test_addresses(text, expected):
    assert split_listen(text) == expected


@pytest.mark.parametrize("text", ["", "8080", ":8080", "::1:80", "h:65536", "unix:rel", "h:x"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError):
        split_listen(text)


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("10 B", 10), ("1kB", 1000), ("1.5 MiB", 3 * 2**19)]
)
def test_sizes(text, size):
    assert read(MODEL, {}, [f"server.max_body={text}"]).server.max_body == size


def test_every_routing_that_can_be_configured_is_there():
    assert set(config.ROUTING) <= set(ROUTERS)
    for name in config.ROUTING:
        assert make_router(name)


HTTP = """
[[models]]
name = "llama"
[models.relay]
names = ["meta-llama/Llama-3.1-8B"]
[[models.replicas]]
name = "up"
kind = "http"
address = "http://127.0.0.1:8000"
"""


def test_a_model_of_http_replicas_has_its_own_defaults():
    tensor, http = read(MODEL + HTTP).models
    assert (tensor.http, tensor.routing, tensor.timeout_ms) == (False, "wlc", 30_000)
    assert (http.http, http.routing, http.timeout_ms) == (True, "session", 600_000)
    assert http.relay.names == ("meta-llama/Llama-3.1-8B",)


def test_routes_lead_to_models_of_http_replicas():
    found = read(HTTP + '[[routes]]\npath = "/shop"\nmodel = "llama"\nstrip_prefix = true\n')
    assert [(route.path, route.model, route.strip_prefix) for route in found.routes] == [
        ("/shop", "llama", True)
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        (MODEL + '[models.relay]\napi = "web"\n', "only models with http replicas are relayed"),
        (MODEL + 'health = "/h"\n', 'health: only replicas of kind "http" have it'),
        (HTTP.replace("[models.relay]", "slo_ms = 9\n[models.relay]"), "slo_ms: only models with"),
        (HTTP + 'command = ["x", "{port}"]\n', 'either "command" (what to run) or "address"'),
        (HTTP.replace("address", "#") + 'command = ["x"]\n', "expected {port} or {socket} in it"),
        (HTTP.replace("http://127.0.0.1:8000", "h:1"), 'such as "http://127.0.0.1:8000"'),
        (HTTP.replace("127.0.0.1", "h") + "count = 2\n", 'found by discover = "dns"'),
        (HTTP + '[[models.replicas]]\nname = "n"\nspawn = "n.toml"\n', "replicas of one kind"),
        (HTTP + '[[routes]]\npath = "shop"\nmodel = "llama"\n', "a path that begins with /"),
        (HTTP + '[[routes]]\npath = "/shop/"\nmodel = "llama"\n', "expected no / at its end"),
        (HTTP + '[[routes]]\npath = "/"\nmodel = "x"\n', "a model with http replicas: llama"),
        (HTTP + '[[routes]]\npath = "/"\nmodel = "llama"\n' * 2, "the same path and host"),
        (HTTP.replace("names", "session").replace("up", "u"), 'did you mean "sessions"?'),
        (HTTP.replace("names = [", "sessions = ["), "sources such as header:x-session-id"),
        (HTTP.replace("names = [", 'sessions = ["header:authorization", '), "sources such as"),
        (
            HTTP.replace('names = ["meta-llama/Llama-3.1-8B"]', 'sessions = ["header:cookie"]'),
            "cannot name a session",
        ),
        (
            HTTP.replace("[models.relay]", 'routing = "wlc"\n[models.relay]\nstrict = true'),
            'routing: expected "session"',
        ),
    ],
)
def test_what_cannot_be_relayed_is_refused(text, expected):
    found = problems(text)
    assert any(expected in line for line in found), found


LLM = """
[[models]]
name = "chat"
kind = "llm"
[[models.replicas]]
name = "c"
address = "tcp:127.0.0.1:7001"
"""


def test_a_language_model_has_its_own_defaults_and_keys():
    more = 'routing = "prefix"\n[models.generation]\nnames = ["org/M"]\nunsent = "2 MiB"\n'
    plain, undeclared, full = read(
        LLM
        + LLM.replace('"chat"', '"any"').replace('"c"', '"d"').replace('kind = "llm"\n', "")
        + LLM.replace('"chat"', '"full"')
        .replace('"c"', '"e"')
        .replace('kind = "llm"\n', 'kind = "llm"\ntimeout_ms = 5000\n' + more)
    ).models
    assert (plain.routing, plain.timeout_ms, plain.call_timeout_ms) == ("wlc", 600_000, 600_000)
    # Its replicas may turn out to be of either kind.
    assert (undeclared.timeout_ms, undeclared.call_timeout_ms) == (30_000, 600_000)
    assert (full.routing, full.call_timeout_ms, full.generation.unsent) == ("prefix", 5000, 2**21)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (LLM + "slo_ms = 5", "slo_ms"),
        (LLM.replace('"llm"', '"speech"'), "kind"),
        (LLM.replace('"llm"', '"tensor"') + 'routing = "prefix"', "routing"),
        (HTTP + 'kind = "llm"', "kind"),
        (HTTP + "[models.generation]\nidle_ms = 5", "generation"),
        (LLM + '[models.generation]\nsessions = ["header:authorization"]', "sessions"),
        (LLM + "[models.generation]\nidle = 5", "idle"),
    ],
)
def test_keys_of_language_models_are_theirs_alone(text, key):
    lines = text.splitlines()
    # Keys of the model itself stand before its tables.
    last = lines.pop()
    place = len(lines) if last.startswith("[") or "[models.generation]" in lines else 3
    lines.insert(place, last)
    with pytest.raises(ConfigError) as wrong:
        read("\n".join(lines))
    assert any(key in problem.key for problem in wrong.value.problems), wrong.value


def test_a_name_on_v1_is_one_models():
    other = LLM.replace('"chat"', '"two"').replace('"c"', '"d"')
    read(LLM + other)
    named = '[models.generation]\nnames = ["chat"]\n'
    with pytest.raises(ConfigError, match='"chat" is "chat" on /v1 too'):
        read(LLM + other + named)
    with pytest.raises(ConfigError, match="on /v1 too"):
        read(HTTP + LLM + '[models.generation]\nnames = ["meta-llama/Llama-3.1-8B"]\n')
