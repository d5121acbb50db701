"""What every command needs: its options, the settings, the server, and a place for messages."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from tokenhubctl import table
from tokenhubctl.client import READ_SECONDS, Client
from tokenhubctl.config import OUTPUT, Config
from tokenhubctl.errors import ApiError, CliError, UsageFault
from tokenhubctl.output import FORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenhubctl.config import Found

T = TypeVar("T")


class Options:
    """The options that every command takes, before or after its name."""

    def __init__(self) -> None:
        self.form: str | None = None
        self.query: str | None = None
        self.headings = True
        self.url: str | None = None
        self.timeout = READ_SECONDS
        self.debug = False
        self.watch = False
        self.interval = 2.0


class Session:
    """One run of the command line. The settings are read and the server is called when needed."""

    def __init__(self) -> None:
        self.options = Options()
        self._config: Config | None = None
        self._client: Client | None = None
        self._tokens: list[Found] = []

    @property
    def config(self) -> Config:
        """The settings of this run."""
        if self._config is None:
            self._config = Config.load(self.options.url)
        return self._config

    @property
    def client(self) -> Client:
        """The server, addressed with the admin token."""
        if self._client is None:
            self._tokens = self.config.admin_tokens()
            self._client = self.client_with(self._tokens)
        return self._client

    def client_with(self, credentials: Sequence[Found], *, seconds: float | None = None) -> Client:
        """The server, addressed with other credentials or another time limit."""
        options = self.options
        limit = max(seconds or 0.0, options.timeout)
        return Client(self.config.endpoint, credentials, read_seconds=limit, debug=options.debug)

    @property
    def form(self) -> str | None:
        """The output format asked for by option or TOKENHUB_OUTPUT; None leaves it to the view."""
        if self.options.form is not None:
            return self.options.form
        found = self.config.find(OUTPUT)
        if found is None:
            return None
        if found.value not in FORMS:
            raise UsageFault(
                f"{found.source} is {found.value!r}, which is no output format.",
                hint=f"One of: {', '.join(FORMS)}.",
            )
        return found.value

    def get(self, target: str, *members: str) -> dict[str, Any]:
        """GET an answer, as in ``call``."""
        return self.call("GET", target, None, *members)

    def call(self, method: str, target: str, body: object = None, *members: str) -> dict[str, Any]:
        """Call the server for an object that has all of ``members``.

        Raises CliError for another answer: what is not there must not be shown as a state.
        A route that the server does not have gets an error that says so.
        """
        answer = self._call(method, target, body)
        missing = [name for name in members if not isinstance(answer, dict) or name not in answer]
        if missing or not isinstance(answer, dict):
            raise unexpected(missing)
        return answer

    def _call(self, method: str, target: str, body: object) -> Any:
        try:
            return self.client.call(method, target, body)
        except ApiError as error:
            explain_missing_route(error, method, target)
            raise

    def change(
        self, method: str, target: str, body: object = None, *, member: str = "ok"
    ) -> dict[str, Any]:
        """Call for a change. An answer without ``member``, or with ``ok: false``, is an error."""
        answer = self._call(method, target, body)
        if not isinstance(answer, dict) or member not in answer or answer.get("ok") is False:
            raise CliError(
                "The server did not confirm the change.",
                hint="Look whether it was made, then at the server's log.",
                code="not_confirmed",
            )
        return answer

    def listed(self, target: str, *members: str) -> list[dict[str, Any]]:
        """The objects of a list answer under the first of ``members`` it has."""
        return objects(self._call("GET", target, None), *members)

    def renewed(self, error: CliError) -> bool:
        """Whether the token was refused and another one is found now: it may have been rotated."""
        if not isinstance(error, ApiError) or error.status != 401:
            return False
        self._config = self._client = None
        return self.config.admin_tokens() != self._tokens

    def again(self, look: Callable[[], T]) -> Iterator[T]:
        """Looks at the server without end, across its restarts.

        The first look may fail. Later a server that does not answer is said once, and asked
        again after ``interval`` seconds; a rotated token is read anew. Another error ends it.
        """
        yield look()
        answered = True
        while True:
            try:
                seen = look()
            except CliError as error:
                if self.renewed(error):
                    continue
                if not error.retryable:
                    raise
                if answered:
                    why = error.message.rstrip(".")
                    self.note(f"No answer since {time.strftime('%H:%M:%S')} ({why}); asking again")
                answered = False
                time.sleep(self.options.interval)
            else:
                answered = True
                yield seen

    @staticmethod
    def note(message: str) -> None:
        """A message for a person, on stderr."""
        print(table.visible(message), file=sys.stderr)


def objects(answer: Any, *members: str) -> list[dict[str, Any]]:
    """The list in an answer: the answer itself or one of its members; null counts as empty."""
    found = answer
    if isinstance(answer, dict):
        named = [member for member in members if member in answer]
        if not named:
            raise unexpected(members[:1])
        found = answer[named[0]] or []
    if not isinstance(found, list):
        raise unexpected(members[:1])
    return [item if isinstance(item, dict) else {"id": item} for item in found]


def unexpected(missing: Sequence[str] = ()) -> CliError:
    """An answer that no TokenHub of this version gives."""
    what = f"has no {', '.join(map(repr, missing))}" if missing else "is not what TokenHub says"
    return CliError(
        f"The server's answer {what}.",
        hint="Is it a TokenHub, and of this version? `tokenhubctl doctor` looks.",
        code="unexpected_answer",
    )


def explain_missing_route(error: ApiError, method: str, target: str) -> None:
    """Tell a route that does not exist from a thing that does not."""
    no_route = error.code in {"route_not_found", "method_not_allowed", "no_such_route"}
    if error.status == 405 or (error.status == 404 and (no_route or error.code == "http_404")):
        where = target.partition("?")[0]
        error.message = f"This server has no {method} {where}: {error.message}"
        error.hint = (
            "Is the server older than this tokenhubctl, or the path in TOKENHUB_URL wrong? "
            "`tokenhubctl doctor` looks."
        )
