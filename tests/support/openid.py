"""A small OpenID provider for tests, in the place of huggingface.co's: it signs in whoever ``user`` is, on 127.0.0.1."""

import base64
import json
import secrets
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey

CLIENT_ID, CLIENT_SECRET = "distillery", secrets.token_hex(16)


@dataclass(frozen=True)
class Account:
    """``sub`` is the account's id, for ever; the name is what others see, and can be given up and taken by another."""

    sub: str
    name: str


class Provider(ThreadingHTTPServer):
    """The endpoints that a client of OpenID Connect asks (https://openid.net/specs/openid-connect-core-1_0.html, the
    authorization code flow). ``user`` has agreed already."""

    def __init__(self, scopes: str = "openid profile") -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.scopes = scopes
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.user = Account("0", "nobody")
        self.key = ECKey.generate_key("P-256", auto_kid=True)
        self.codes: dict[str, dict[str, Any]] = {}
        """Code -> what was asked for, and for whom: each is good once."""
        self.issued: list[str] = []
        """The access tokens that were given out."""

    def environment(self) -> dict[str, str]:
        """What a Space with ``hf_oauth: true`` has, this provider's client."""
        return {
            "SYSTEM": "spaces", "SPACE_ID": "someone/distillery", "OAUTH_CLIENT_ID": CLIENT_ID,
            "OAUTH_CLIENT_SECRET": CLIENT_SECRET, "OAUTH_SCOPES": self.scopes, "OPENID_PROVIDER_URL": self.url,
            "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Request(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/.well-known/openid-configuration":
            at = self.server.url
            self.send_json(
                {
                    "issuer": at, "authorization_endpoint": f"{at}/oauth/authorize", "token_endpoint": f"{at}/oauth/token",
                    "jwks_uri": f"{at}/oauth/jwks", "id_token_signing_alg_values_supported": ["ES256"],
                }
            )  # fmt: skip
        elif url.path == "/oauth/jwks":
            self.send_json({"keys": [self.server.key.as_dict(private=False)]})
        else:
            self.authorize(dict(parse_qsl(url.query)))

    def authorize(self, asked: dict[str, str]) -> None:
        """The page on which one agrees: back at once, with a code."""
        assert asked["client_id"] == CLIENT_ID and asked["response_type"] == "code"
        code = secrets.token_hex(8)
        self.server.codes[code] = {**asked, "user": self.server.user}
        where = f"{asked['redirect_uri']}&{urlencode({'code': code, 'state': asked['state']})}"
        self.send(302, b"", {"Location": where})

    def do_POST(self) -> None:
        """A code for an ID token, to the client that has the secret."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        client = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        asked = self.server.codes.pop(form["code"][0], None)
        if asked is None or self.headers["Authorization"] != f"Basic {client}":
            return self.send(401, b"{}", {"Content-Type": "application/json"})
        user, now = asked["user"], int(time.time())
        claims = {
            "iss": self.server.url, "aud": CLIENT_ID, "iat": now, "exp": now + 600, "nonce": asked["nonce"], "sub": user.sub,
            "name": user.name, "preferred_username": user.name, "profile": f"{self.server.url}/{user.name}", "picture": "",
        }  # fmt: skip
        id_token = jwt.encode({"alg": "ES256", "kid": self.server.key.kid}, claims, self.server.key)
        self.server.issued.append(secrets.token_hex(16))
        self.send_json(
            {
                "access_token": self.server.issued[-1], "token_type": "bearer", "expires_in": 28800, "scope": self.server.scopes,
                "id_token": id_token,
            }
        )  # fmt: skip

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing on standard error."""
