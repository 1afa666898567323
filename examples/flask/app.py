"""A small Flask application that keeps who is logged in in its own memory.

As it stands it can run as one process only: another one would not know its users. Behind the
gateway it runs as three, because each client stays with the process that knows it.
"""

from __future__ import annotations

import os
import secrets

from flask import Flask, Response, make_response, redirect, request

COOKIE = "sid"

app = Flask(__name__)
users: dict[str, str] = {}  # who is logged in, by the cookie: in this process, nowhere else


@app.get("/")
def home() -> str:
    name = users.get(request.cookies.get(COOKIE, ""))
    greeting = f"Hello, {name}." if name else "Nobody is logged in."
    return f"{greeting} This is process {os.getpid()}.\n"


@app.post("/login")
def login() -> Response | tuple[str, int]:
    name = request.form.get("name", "").strip()
    if not name:
        return "name: expected a form field with who you are\n", 400
    sid = secrets.token_hex(16)
    users[sid] = name
    answer = make_response(redirect("/"))
    answer.set_cookie(COOKIE, sid, httponly=True, samesite="Lax")
    return answer


@app.post("/logout")
def logout() -> Response:
    users.pop(request.cookies.get(COOKIE, ""), None)
    answer = make_response(redirect("/"))
    answer.delete_cookie(COOKIE)
    return answer


@app.get("/health")
def health() -> str:
    return "ok\n"
