"""Sign in with Hugging Face: on a Space whose front matter has ``hf_oauth: true``, by gradio's own OAuth.

An account owns runs as a browser does, by a token. The account's token is made from the secret of the folder of runs and
the account's id: it is the same in every browser, and nobody can make it from the account's name. Only an open page holds
it. A browser stores nothing but its own token, so after signing out nothing of the account is left there.
"""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.utils import get_space

from kd.runs import visitors
from kd.system.files import default_runs_folder
from kd.system.ids import owner_hash
from kd.ui.access import secret_key
from kd.ui.rendering import render

# What a Space with ``hf_oauth: true`` has in its environment.
VARIABLES = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")

PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

SIGN_IN = "Sign in with Hugging Face"


def is_offered() -> bool:
    """Tell whether one can sign in here, which is so on a Space only: elsewhere gradio would let everybody in as the account
    of the server's own Hub token. Raises ``ValueError`` where some of ``VARIABLES`` are missing."""
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if not get_space() or VARIABLES[0] in missing:
        return False
    if missing:
        raise ValueError(
            f"{VARIABLES[0]} is set, {' and '.join(missing)} not. A Space with hf_oauth: true in its README has all of "
            f"{', '.join(VARIABLES)}; without {VARIABLES[0]} the page has no login."
        )
    return True


def build(page: gr.Blocks) -> None:
    """Add the button and what it does. Its label says whether the visitor is signed in; the page's script tells the other
    open pages of this browser."""
    with gr.Row(elem_id="login"):
        gr.HTML(render("login"), js_on_load=None, apply_default_css=False)
        button = gr.LoginButton(SIGN_IN, variant="secondary", size="sm", scale=0, min_width=210, elem_id="sign-in")
    button.load_event_to_attach = None  # gradio's own would be public API and tell any other site the account's name
    button.click(None, button, None, js="label => distillery.login.leave(label)")
    told = page.load(on_load, None, button, **PRIVATE)
    told.then(None, button, None, js="label => distillery.login.arrived(label)")


def on_load(request: gr.Request, profile: gr.OAuthProfile | None) -> gr.Button:
    """Return the button as the visitor should see it: with the account's name, or to sign in."""
    signed_in = profile and is_from_our_page(request.headers)
    return gr.Button(f"Sign out ({profile.username})" if signed_in else SIGN_IN)


def owner_of(saved: str, request: gr.Request, profile: gr.OAuthProfile | None) -> str:
    """Return the token of the visitor who opens a page: ``saved``, the browser's own, or the account's for one who is signed
    in. Everything that the browser's token owns is then handed over to the account."""
    if profile is None or not is_from_our_page(request.headers):
        return saved
    token = secret_key(f"login {profile['sub']}", default_runs_folder())
    visitors.hand_over(default_runs_folder(), owner_hash(saved), owner_hash(token))
    return token


def is_from_our_page(headers: Mapping[str, str]) -> bool:
    """Tell whether a request comes from this server's own page. gradio's session cookie comes with the requests of any other
    site too, and gradio lets that site read the answer (https://developer.mozilla.org/docs/Glossary/Fetch_metadata_request_header)."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    return urlsplit(headers.get("origin", "")).netloc == headers.get("host")
