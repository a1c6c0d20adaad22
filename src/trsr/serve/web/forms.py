"""What a page's form sends: plain fields, checked, and only from a page of this server."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from trsr.data.values import id_fault
from trsr.serve.gate import check_user
from trsr.serve.problems import BAD_REQUEST, INVALID, WRONG_ORIGIN, Problem

_MAX_FIELDS = 20


class Form(dict[str, str]):
    """The fields of a form."""

    def id(self, name: str) -> str:
        """Return a field that is an id, as it was sent.

        Raises:
            Problem: it is missing.
        """
        if not self.get(name):
            raise Problem(INVALID, f"The field {name!r} is empty; it holds an id.")
        return self[name]

    def new_id(self, name: str) -> str:
        """Return a field that is an id, which may be a new one.

        Raises:
            Problem: it cannot be one.
        """
        if fault := id_fault(self.get(name, "")):
            raise Problem(INVALID, f"{name}: {fault}.")
        return self[name]


def check_origin(request: Request) -> None:
    """Refuse what another site's page sends with our cookie, beside the cookie's own SameSite.

    Browsers name the origin with every post, so one that is missing is refused too.

    Raises:
        Problem: it does not come from a page of this server.
    """
    origin = urlsplit(request.headers.get("origin", ""))
    site = request.headers.get("sec-fetch-site", "same-origin")
    if origin.netloc.lower() != request.headers.get("host", "").lower() or site != "same-origin":
        raise Problem(WRONG_ORIGIN, "Use the forms of this server's own page.")


async def read_form(request: Request) -> Form:
    """Return the fields of a request from this server's page.

    Raises:
        Problem: it comes from elsewhere, is no form, or names a user that the caller's key does not reach.
    """
    check_origin(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise Problem(BAD_REQUEST, "A form was expected.")
    try:
        body = (await request.body()).decode("ascii")
        pairs = parse_qsl(body, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise Problem(BAD_REQUEST, "The form cannot be read.") from error
    form = Form((name, value.replace("\r\n", "\n")) for name, value in pairs)
    if "user" in form:
        check_user(request, form.id("user"))
    return form
