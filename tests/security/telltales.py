"""Texts that look like secrets and are none of anybody's, and innocent ones that look almost like them.

Put together at import from parts and noise: no scanner takes this file for a leak, and no real key is in it.
"""

from __future__ import annotations

import base64
import random
import string
import uuid
from collections.abc import Mapping
from typing import Any, Final

import orjson

__all__ = ["INNOCENT", "SECRETS"]

_ALNUM: Final = string.ascii_letters + string.digits
_random: Final = random.Random(20)


def _noise(length: int, alphabet: str = _ALNUM) -> str:
    return "q7Xz"[:length] + "".join(_random.choices(alphabet, k=max(0, length - 4)))


def _hex(length: int) -> str:
    return "0a1f" + "".join(_random.choices("0123456789abcdef", k=length - 4))


def _upper(length: int) -> str:
    return "7QX4" + "".join(_random.choices(string.ascii_uppercase + string.digits, k=length - 4))


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _url64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


_BEGIN, _END = "-----BEGIN {}-----", "-----END {}-----"


def _pem(kind: str, body: str, line: str = "\n") -> str:
    return line.join((_BEGIN.format(kind), body, _END.format(kind)))


_JWT: Final = ".".join((_url64('{"alg":"RS256"}'), _url64('{"sub":"alice","exp":1}'), _noise(43)))
_WORD: Final = "hunter" + "22"
_BODY: Final = _noise(64)
_AWS: Final = _noise(40, _ALNUM + "/+")
_KEY: Final = _noise(40)
_LOGIN: Final = _b64("user:" + "pa55word")
_UUID: Final = str(uuid.UUID(int=_random.getrandbits(128)))
_PRIVATE: Final = "PRIVATE" + " KEY"


def _text(around: str, secret: str) -> tuple[dict[str, Any], str]:
    return {"text": around.replace("{}", secret)}, secret


# name → the data of an event, and what must not be in what is left of it
SECRETS: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "an AWS secret in an environment": _text("AWS_SECRET_ACCESS_KEY={} here", _AWS),
    "an AWS secret in an ini file": _text("[default]\naws_secret_access_key = {}\n", _AWS),
    "an AWS session token": _text("export AWS_SESSION_TOKEN={}", _AWS * 3),
    "an AWS access key in an address": _text("https://s3.example/?AWSAccessKeyId={}&x=1", "AK" + "IA" + _upper(16)),
    "a Google service account": (
        {"text": orjson.dumps({"private_key": _pem(_PRIVATE, _BODY)}).decode()},
        _BODY,
    ),
    "an RSA key": _text(_pem("RSA " + _PRIVATE, "{}"), _BODY),
    "an EC key on one line": _text(_pem("EC " + _PRIVATE, "{}", "\\n"), _BODY),
    "a PGP key block": _text(_pem("PGP " + _PRIVATE + " BLOCK", "\n{}"), _BODY),
    "a PuTTY key": _text("PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n{}\nPrivate-MAC: 00", _BODY),
    "a key as a list of its lines": (
        {"lines": ["see", _BEGIN.format(_PRIVATE), _BODY, _BODY[::-1], _END.format(_PRIVATE)]},
        _BODY[::-1],
    ),
    "an Azure storage key": _text("DefaultEndpointsProtocol=https;AccountName=x;AccountKey={};E=x", _noise(86) + "=="),
    "an Azure service bus key": _text("Endpoint=sb://x/;SharedAccessKey={}", _noise(43) + "="),
    "a MongoDB address": _text("mongodb+srv://app:{}@c0.example.net/db", "pa55" + "-Word!"),
    "a MySQL address": _text("mysql://root:{}@host/db", _WORD),
    "a password with an at sign": _text("postgres://a:{}@db/x", "p@ss:" + "w0rd"),
    "a git address with a token": _text("https://x-access-token:{}@github.com/o/r.git", _noise(30)),
    "an address with a token alone": _text("https://{}@git.example.com/o/r.git", _hex(40)),
    "a JDBC address": _text("jdbc:postgresql://h/db?user=a&password={}", _WORD),
    "a libpq string with quotes": _text("host=db user=app password='{}' dbname=x", "correct " + "horse"),
    "an ADO string": _text("Server=db;User Id=sa;Password={};Encrypt=true", "correct" + "horse"),
    "a JWT in a header": _text("Authorization: Bearer {}", _JWT),
    "a JWT in an address": _text("https://x.example/cb?id_token={}#a", _JWT),
    "a JWT as a name": ({"usage": {_JWT: 1}}, _JWT),
    "a JWT in a list in a list": ({"rows": [[1, [_JWT]]]}, _JWT),
    "a JWT cut by a line's end": ({"text": f"Bearer {_JWT[:30]}\n{_JWT[30:]}"}, _JWT[35:]),
    "a key cut by a line's end": ({"text": "sk-" + f"proj-{_KEY[:24]}\n{_KEY[::-1]}"}, _KEY[::-1]),
    "a ticket under its name": ({"ticket": _JWT}, _JWT),
    "a cookie in a map": ({"headers": {"cookie": f"sid={_KEY}"}}, _KEY),
    "a cookie in a pair": ({"headers": [["set-cookie", f"sid={_KEY}; Path=/"]]}, _KEY),
    "basic auth in a list": ({"headers": ["Accept: */*", f"Authorization: Basic {_LOGIN}"]}, _LOGIN),
    "basic auth of a proxy": _text("proxy-authorization: basic {}", _LOGIN),
    "base64 in a header under a telling name": ({"headers": {"X-Amz-Security-Token": _noise(100) + "=="}}, "q7Xz"),
    "a socket's subprotocol": ({"headers": {"Sec-WebSocket-Protocol": f"carrel.v1, bearer.{_JWT}"}}, _JWT),
    "docker's login": ({"auths": {"r.example": {"auth": _LOGIN}}}, _LOGIN),
    "docker's login as text": _text('{"auths":{"r.example":{"auth":"{}"}}}', _LOGIN),
    "npm's login": _text("//r.example/:_authToken={}", _UUID),
    "curl's user": _text("curl -sS -u admin:{} https://x.example", _WORD),
    "curl's header": _text("curl -H 'X-Api-Key: {}' https://x.example", _KEY),
    "GitLab's header": _text("PRIVATE-TOKEN: {}", _KEY),
    "Vault's header": _text("X-Vault-Token: {}", "s." + _noise(24)),
    "JSON within JSON": ({"text": orjson.dumps(orjson.dumps({"password": _WORD}).decode()).decode()}, _WORD),
    "Python's repr": _text("{'password': '{}'}", _WORD),
    "an argument of a call": _text("connect(host='h', password='{}')", _WORD),
    "YAML": _text("db:\n  password: {}\n", _WORD),
    "an XML element": _text("<db><password>{}</password></db>", _WORD),
    "an HTML form": _text('<input type="password" name="p" value="{}">', _WORD),
    "a form's body": _text("grant_type=password&password={}&x=1", _WORD),
    "an encoded address": _text("next=%2Fcb%3Fclient_secret%3D{}%26x", _KEY),
    "a command's option": _text("tool --api-key {} run", _KEY),
    "a command's password": _text("tool --password {} run", _WORD),
    "sshpass": _text("sshpass -p {} ssh host", _WORD),
    "a netrc": _text("machine api.example login bob password {}", _WORD),
    "a sentence": _text("The password is {} until Monday.", _WORD),
    "Markdown": _text("**API key:** `{}`", _KEY),
    "a Markdown table": _text("| password | {} |", _WORD),
    "a wide colon": _text("password\uff1a{}", _WORD),
    "an environment's PASS": _text("DB_PASS={}", _WORD),
    "a hash of a password": _text("bob:{}", "$2b" + "$12$" + _noise(53, _ALNUM + "./")),
    "an object under a telling name": ({"db": {"password": {"value": _WORD}}}, _WORD),
    "a secret in a telling name": ({"password=" + _WORD + "api_key": "x"}, _WORD),
    "an escaped camel": ({"config": [{"dbPassword": _WORD}]}, _WORD),
    "a Slack token": _text("{}", "xo" + "xb-123456789012-" + _noise(24)),
    "a Discord bot": _text("{}", "M" + _noise(23) + "." + _noise(6) + "." + _noise(38)),
    "a Discord webhook": _text("https://discord.com/api/webhooks/123456789012345678/{}", _noise(68)),
    "a Teams webhook": _text(
        "https://x.webhook.office.com/webhookb2/{}", f"{_UUID}@{_UUID}/IncomingWebhook/{_hex(32)}"
    ),
    "a Twilio key": _text("{}", "S" + "K" + _hex(32)),
    "a Stripe key": _text("{}", "sk_" + "live_" + _noise(24)),
    "a GitHub token": _text("{}", "gh" + "p_" + _noise(36)),
    "an OpenAI key": _text("{}", "sk" + "-svcacct-" + _noise(60)),
    "a Heroku key": _text("{}", "HRKU" + "-AA" + _noise(58)),
    "a Sentry token": _text("{}", "sntr" + "ys_" + _noise(60)),
    "a Linear key": _text("{}", "lin_" + "api_" + _noise(40)),
    "a Notion key": _text("{}", "nt" + "n_" + _noise(46)),
    "an Airtable token": _text("{}", "pa" + "t" + _noise(14) + "." + _hex(64)),
    "a Doppler token": _text("{}", "dp" + ".pt." + _noise(43)),
    "a Tailscale key": _text("{}", "tskey" + "-auth-" + _noise(17) + "-" + _noise(32)),
    "a Pulumi token": _text("{}", "pu" + "l-" + _hex(40)),
    "a RubyGems key": _text("{}", "ruby" + "gems_" + _hex(48)),
    "a Docker token": _text("{}", "dckr" + "_pat_" + _noise(27)),
    "an Atlassian token": _text("{}", "ATA" + "TT3" + _noise(180, _ALNUM + "_-=")),
    "a New Relic key": _text("{}", "NR" + "AK-" + _upper(27)),
    "a Grafana token": _text("{}", "gl" + "c_" + _noise(60)),
    "a PlanetScale password": _text("{}", "pscale" + "_pw_" + _noise(43)),
    "a Square key": _text("{}", "sq0" + "csp-" + _noise(43)),
    "an age key": _text("{}", "AGE-SECRET" + "-KEY-1" + _upper(58)),
}

# What must come through as it is.
INNOCENT: Final[tuple[dict[str, Any], ...]] = (
    {"commit": _hex(40), "text": f"fixed in {_hex(40)} and {_hex(7)}"},
    {"text": f"commit {_hex(64)}\nparent {_hex(40)}"},
    {"id": _UUID, "text": f"order {_UUID} was paid"},
    {"image": "data:image/png;base64," + _b64("\x89PNG" + "".join(map(chr, range(256))) * 3)},
    {"image": "iVBORw0KGgoAAAANSUhEUgAA" + _b64("x1/y" * 60)},
    {"text": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"},
    {"text": "pneumonoultramicroscopicsilicovolcanoconiosis-related"},
    {"colour": "#a1b2c3", "text": "background: #a1b2c3d4; border: 1px solid #0f0"},
    {"order": "SK-2024-000123456", "text": "order SK2024000123456, invoice PUL-2024-7"},
    {"token_count": 512, "max_tokens": 4096, "tokens_left": 3},
    {"password_hint_shown": True, "password_strength": 4, "password_changed_at": "2026-11-20T08:23:00Z"},
    {"secretary": "Ms Moneypenny", "secretion": "gland", "text": "The secretary: Ms Moneypenny, room 22"},
    {"text": "def login(user: str, password: str) -> bool:\n    return check(user, password)"},
    {"text": "password = getpass.getpass('Password: ')\ntoken = fetch_token(user)"},
    {"text": "client = Client(api_key=os.environ['API_KEY'])"},
    {"text": "if (!password) throw new Error('password is required');"},
    {"text": "SELECT id, password_hash FROM users WHERE token IS NULL"},
    {"text": "class PasswordField(forms.CharField):\n    widget = PasswordInput"},
    {"text": "usage: tool [--api-key KEY] [--password-file PATH] [--max-tokens 4096] --token-limit 20000"},
    {"text": "git log --pretty=oneline --abbrev-commit -n 20; ls -p --color=auto"},
    {"text": "curl -sS https://example.com/a?b=1 -o out.json; curl -u is for a user"},
    {"text": "The password is required. Your password was changed. The password is too short."},
    {"text": "<label>Password</label><input type='password' name='password' placeholder='Password'>"},
    {"text": "<key>CFBundleIdentifier</key><string>org.example.app2</string>"},
    {"text": "| key | value |\n|---|---|\n| api_key | string, required |"},
    {"text": "| password | required | the user's password |"},
    {"text": "Passwords have 12 characters or more: letters, digits and signs."},
    {"text": "Costs $5 to $10, or US$1,000.00; ${HOME}/bin; $1 and $2 are arguments; $6 million"},
    {"text": "awk '{print $1$2}' < in | grep -E '^a$|b$'"},
    {"text": "100% of %3 and 5%discount; %20 is a space, %2F a slash"},
    {"text": "price\uff1a100\u5143\uff0c\u5bc6\u7801\u4e0d\u9700\u8981"},
    {"text": "See https://medium.com/@alice/a-story-1234567890abcdef and https://example.com/users/@bob"},
    {"text": "npm i @scope/package@1.2.3 from https://registry.example/@scope%2fpackage"},
    {"url": "https://example.com/search?q=secret+garden&page=2&sort=key"},
    {"text": "ssh-keygen -t ed25519; the public key is ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ" + _noise(40)},
    {"text": "-----BEGIN CERTIFICATE-----\n" + _BODY + "\n-----END CERTIFICATE-----"},
    {"lines": ["-----BEGIN PUBLIC KEY-----", _BODY, "-----END PUBLIC KEY-----"]},
    {"text": "keys: up, down; key: value; keyboard: qwerty2; monkey: george99"},
    {"next_page_token": "CAEQAA", "continuation": "abc123", "etag": '"33a64df551425fcc"'},
    {"run_id": "run-" + _hex(24), "thread_id": "thread-" + _hex(24), "tool_call_id": "call_" + _hex(24)},
    {"text": "pattern: patchwork.example, pathological cases, dp.table, dp.part1"},
    {"text": "secret_santa_2024, secret_garden_chapter_12_of_27_the_robin_shows"},
    {"text": "ntn_small, glc_max_2024, sku SK1234567890, sq0-metres, NRAK is a name"},
    {"text": "sntrys are guards; tskey is a column; lin_apix; dckr for short; pul-over, HRKU-7"},
    {"auth": {"type": "none"}, "auth_method": "oauth2", "text": "auth: basic, none or digest"},
    {"auth": "required", "text": "auth=none; author=Ada; authority: city"},
    {"cookie_consent": True, "text": "Cookies: 12 pieces. Cookie: a biscuit"},
    {"basic": "Basic income of 1000 euros", "text": "Basic: aGVsbG8gd29ybGQ is base64 for hello world"},
    {"version": "v1.2.3-rc.4+build.20241120", "digest": "sha256:" + _hex(64), "crc": "0x1a2b3c4d"},
    {"card": "4111 1111 1111 1111", "iban": "DE89 3704 0044 0532 0130 00", "phone": "+49 30 1234567"},
    {"model": "gpt-4o-2024-08-06", "seed": 18446744073709551, "temperature": 0.7, "logprob": -1.5e-7},
    {"text": "Mercury.Venus1.EarthMarsJupiterSaturn; a.b.c; module.submodule.function_name_2"},
    {"text": "compass=north, bypass=true, trespass=1; pass 3 of 5; passed=12 failed=0"},
    {"sql": "CREATE USER app WITH LOGIN; -- the password comes from the vault"},
    {"headers": {"Content-Type": "application/json", "Accept": "*/*", "X-Request-Id": _UUID}},
)
