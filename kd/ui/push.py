"""Push a run's student to the Hub from the page: in the account of whoever uses this machine, or is signed in on a Space.

The push is a process (``kd.export.push_job``): it goes on when the page is closed, and is found again. The token is read here
from gradio's session, or is this machine's own, and goes to that process; the page's script never has it.
"""

import os
from typing import Any

import gradio as gr

from kd.errors import UserError
from kd.export.push import SCOPE, PushSettings, default_name, own_token
from kd.export.push_job import asked_of, is_pushing, push_of, start_push
from kd.runs.run import CLOSED, Run
from kd.ui import login
from kd.ui.access import admitted, outcome, own, served, shared

# What a sign-in may have allowed that makes a push possible, the least first.
SCOPES = (SCOPE, "write-repos", "manage-repos")

LONGEST_NAME = 96


def is_offered() -> bool:
    """Tell whether students can be pushed from here: on one's own machine, and on a Space where visitors sign in for it. A
    server that strangers share has no token but its owner's, which is not theirs to use."""
    return not shared() or login.is_offered()


@served
def push_state(asked: dict[str, Any], profile: gr.OAuthProfile | None) -> dict[str, Any]:
    """Say where the push of the visitor's ``run`` is; ``{}`` where it cannot be pushed from here (yet), a ``problem`` for a run
    that is not theirs.

    ``status`` is that of the push (``none`` before the first), ``line`` says it in words, ``share`` is how much is done,
    ``url`` the address at the end, ``taken`` whether it may be written over what is there. ``repo`` is the name that was
    asked for, or that would be taken, ``missing`` what is missing before it can be pushed, in words.
    """
    try:
        run = own(asked.get("run", ""), asked.get("owner", ""))
        if not is_offered() or not (run.path / "student" / "config.json").exists() or run.status() not in CLOSED:
            return {}
        missing = "" if profile or not shared() else "Sign in with Hugging Face, at the top of the page, to push it."
        owner = f"{profile.username}/" if profile and shared() else ""
        return {"repo": f"{owner}{default_name(run)}", "missing": missing, **_progress(run)}
    except (UserError, ValueError) as problem:
        return {"problem": str(problem)}
    except OSError:  # deleted meanwhile
        return {}


def _progress(run: Run) -> dict[str, Any]:
    """Return what there is to say of the last push that was started here."""
    job = push_of(run)
    if job is None:
        return {"status": "none", "line": "", "share": 0, "url": "", "taken": False}
    status, last = job.status(), job.last("progress", "queued", "hub", "stopped", "failed", "done") or {}
    asked, is_upload = asked_of(job), last.get("phase") == "upload"
    share = last["done"] / max(last["of"], 1) if is_upload else 0
    line = {
        "queued": "Waiting for the export" if last else "Starting",
        "running": _running_words(last),
        "done": " ".join(["Pushed.", *last.get("notes", [])]),
        "died": "The process of the push is gone: it ended without a word. Push again; what was sent is kept.",
    }.get(status, last.get("message", ""))
    if status not in CLOSED and job.stop_asked():
        line = "Cancelling"
    return {
        "status": status,
        "line": line,
        "share": round(share, 3),
        "url": last.get("url", "") if status == "done" else "",
        "taken": status == "failed" and last.get("kind") == "taken",
        **({"repo": asked["repo"]} if asked["repo"] else {}),
        "license": asked["license"],
        "public": asked["public"],
    }


def _running_words(last: dict[str, Any]) -> str:
    if last.get("event") == "hub":
        return last["message"]
    if last.get("phase") == "upload":
        return f"Sending, {last['done'] / 1e6:.1f} of {last['of'] / 1e6:.1f} MB"
    return "Writing the commit" if last.get("phase") == "commit" else "Asking the Hub"


@served
def push_it(asked: dict[str, Any], request: gr.Request, token: gr.OAuthToken | None) -> dict[str, Any]:
    """Start pushing the visitor's ``run``, or find the push that is at work; ``{}``, or a ``problem``."""
    return outcome(push, asked.get("run", ""), asked.get("owner", ""), asked, request, token)


def push(id: str, owner: str, asked: dict[str, Any], request: gr.Request, token: gr.OAuthToken | None) -> None:
    """Start pushing the student of one of the visitor's runs; it counts as one of the runs that they may have open.

    Raises ``UserError`` for any other run, for a request of another site's page, which would come with this one's session,
    and as ``start_push`` does.
    """
    run = own(id, owner)
    if not is_offered() or not login.is_from_our_page(request.headers):
        raise UserError("A student is pushed from the page of one's own machine, or of a Space, and from no other.")
    secret = _token(token)
    if is_pushing(run):
        return
    repo, license = asked.get("repo"), asked.get("license")
    if not isinstance(repo, str) or len(repo) > LONGEST_NAME or not isinstance(license, str):
        raise UserError(f"Give the repository a name of at most {LONGEST_NAME} characters: OWNER/NAME, or NAME alone.")
    settings = PushSettings(asked.get("public") is True, asked.get("overwrite") is True, license, signed_in=shared())
    with admitted(owner):
        start_push(run, repo.strip() or None, secret, settings)


def _token(token: gr.OAuthToken | None) -> str:
    """Return whose token pushes: on one's own machine the user's, else that of the sign-in. Raises ``UserError`` where there
    is none, or it may not push."""
    if not shared():
        return own_token()
    if token is None:
        raise UserError(
            "Sign in with Hugging Face first, at the top of the page: a student is pushed to your own account."
        )
    if not set(token.scope.split()) & set(SCOPES):
        if SCOPE not in os.environ.get("OAUTH_SCOPES", "").split():
            raise UserError(
                f"This Space does not ask its visitors for the scope {SCOPE!r}, without which nothing can be pushed. Its owner "
                "adds it to `hf_oauth_scopes` in the Space's README."
            )
        raise UserError(
            f"You signed in without allowing this page to make repositories (scope {SCOPE!r}); before, it did not ask for that. "
            "Sign out, sign in again and allow it, then push."
        )
    return token.token


@served
def cancel_push(asked: dict[str, Any]) -> dict[str, Any]:
    """Cancel the push of the visitor's ``run``; ``{}``, or a ``problem``."""
    return outcome(cancel, asked.get("run", ""), asked.get("owner", ""))


def cancel(id: str, token: str) -> None:
    """Ask the push of one of the visitor's runs to end. Raises ``UserError`` where there is none."""
    run = own(id, token)
    if not is_pushing(run):
        raise UserError(f"Run {run.id} is not being pushed.")
    push_of(run).ask_to_stop()


# What the script of the run's panel can call.
SERVED = (push_state, push_it, cancel_push)
