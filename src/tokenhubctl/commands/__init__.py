"""The list of all commands. The help text comes from here, so that it imports none of them.

A new command is a function in its noun's file and a line here; a test holds the two together.
"""

from __future__ import annotations

Line = tuple[str, str]

SECTIONS: tuple[tuple[str, tuple[Line, ...]], ...] = (
    (
        "General",
        (
            ("admin-token", "Print the admin token (environment, file, or Docker)"),
            ("rotate-admin-token [TOKEN]", "Replace the admin token; random when none is given"),
            ("status", "Server info, health, vault state"),
            ("health", "Provider health"),
            ("doctor", "Check this machine and the server; each finding with its fix"),
            ("top", "Live view: requests, spend, latency, providers, last decisions"),
            ("version", "The version of this program"),
            ("help [TOPIC]", "This text, a command, or a topic"),
            ("commands", "The whole command tree"),
            ("completion SHELL", "Completion script for bash, zsh or fish"),
            ("api METHOD PATH [BODY]", "Call any route of the server"),
        ),
    ),
    (
        "Vault",
        (
            ("vault unlock [PASSWORD]", "Open the vault; the first time, create it"),
            ("vault lock", "Close the vault"),
            ("vault rotate [OLD] [NEW]", "Change the vault password"),
            ("vault status", "Whether the vault exists and is open"),
            ("vault secret list", "Names of the stored secrets"),
            ("vault secret get KEY", "Print one secret"),
            ("vault secret set KEY [VALUE]", "Store a secret"),
            ("vault secret delete KEY", "Delete a secret"),
        ),
    ),
    (
        "Providers",
        (
            ("provider list", "Providers of the store and the engine"),
            ("provider get ID", "One provider"),
            ("provider add JSON", "Add a provider, or change one"),
            ("provider edit ID JSON", "Change members of a provider"),
            ("provider delete ID", "Delete a provider, its models and its key"),
            ("provider discover ID", "Models the provider offers, and which are registered"),
            ("discover ID", "The same as provider discover"),
            ("provider-status ID", "Health of one provider"),
        ),
    ),
    (
        "Models",
        (
            ("model list", "Models the engine routes to"),
            ("model get ID", "One model"),
            ("model add JSON", "Add a model, or change one"),
            ("model edit ID JSON", "Change members of a model"),
            ("model delete ID", "Delete a model"),
            ("model enable ID", "Let a model be chosen"),
            ("model disable ID", "Keep a model from being chosen"),
            ("model-test ID [KEY]", "Send one short chat request with an API key"),
        ),
    ),
    (
        "Routing",
        (
            ("routing get", "Routing defaults, effective and stored"),
            ("routing set JSON", "Change routing defaults"),
            ("simulate JSON", "Route a what-if request without sending it"),
            ("explain REQUEST-ID", "Why a past request went where it went"),
            ("replay REQUEST-ID", "Decide a past request again from its record"),
            ("alias list", "Model aliases"),
            ("alias get NAME", "One alias"),
            ("alias set NAME JSON", "Create or replace an alias"),
            ("alias delete NAME", "Delete an alias"),
        ),
    ),
    (
        "API keys",
        (
            ("apikey list", "API keys with spend and reserved amounts"),
            ("apikey get ID", "One API key; its text is never shown again"),
            ("apikey create JSON", "Create a key; it is shown once"),
            ("apikey rotate ID", "Give a key a new secret; the old one dies at once"),
            ("apikey edit ID JSON", "Change members of a key"),
            ("apikey delete ID", "Revoke a key"),
            ("apikey paid ID", "Start the key's budget period afresh"),
        ),
    ),
    (
        "Money",
        (
            ("spend", "Spend by key, model, provider or day"),
            ("budget show [KEY]", "Limits, spent and reserved amounts"),
            ("budget verify", "Recompute every account from its rows"),
            ("budget adjust KEY AMOUNT", "Correct what a key has spent, with a reason"),
            ("prices list", "Price of every model, with its source"),
            ("prices show MODEL", "All prices of one model"),
            ("prices set MODEL JSON", "Set the prices of a model"),
            ("prices import FILE", "Import a price list (also LiteLLM's format)"),
            ("prices diff FILE", "What an import would change"),
        ),
    ),
    (
        "Observability",
        (
            ("logs list", "Request log, newest first"),
            ("logs show REQUEST-ID", "One request with its attempts"),
            ("audit list", "Audit trail, newest first"),
            ("audit verify", "Check the hash chain of the audit trail"),
            ("rewards", "Thompson sampling reward data"),
            ("stats", "Aggregated statistics"),
            ("engine models", "Runtime model registry and adapters"),
            ("events", "Live event stream (Ctrl-C to stop)"),
            ("tsdb metrics", "Names of the stored time series"),
            ("tsdb query PARAMETER...", "Read a time series: 'metric=latency&step_ms=60000'"),
            ("tsdb prune", "Delete points older than the retention"),
            ("tsdb retention DAYS", "Set how long points are kept"),
        ),
    ),
)

_OWN_FILE = {
    "admin-token": "admin_token:admin_token",
    "rotate-admin-token": "admin_token:rotate_admin_token",
    "discover": "provider:discover",
    "provider-status": "health:provider_status",
    "model-test": "model_test:model_test",
    "help": "help:help_",
    "commands": "help:commands",
    "replay": "explain:replay",
}
SYNONYMS = {"providers": "provider", "models": "model", "apikeys": "apikey"}


def _place(name: str) -> str:
    return f"tokenhubctl.commands.{_OWN_FILE.get(name) or f'{name}:{name}'}"


NAMES = tuple(dict.fromkeys(synopsis.split()[0] for _, lines in SECTIONS for synopsis, _ in lines))
# Command name to the place of the Click command: "module:attribute".
LAZY = {name: _place(name) for name in NAMES} | {
    synonym: _place(name) for synonym, name in SYNONYMS.items()
}

_HEAD = """\
tokenhubctl - the command line of TokenHub

Usage: tokenhubctl [OPTIONS] COMMAND [ARGUMENTS]
"""

_TAIL = """
Arguments in brackets may be left out; `list`, `get` and `models` are run when a command needs
a verb and has none. JSON and secrets may be `-` (stdin) or `@file`.

Options of every command
  -o, --output FORM     table, wide, json, jsonl, yaml, csv or name
  --query JMESPATH      Print this part of the data only
  --no-headers          Leave out the column headings
  -w, --watch           Repeat a list until Ctrl-C (--interval SECONDS)
  --url URL             Server to talk to, instead of TOKENHUB_URL
  --timeout SECONDS     How long to wait for an answer
  --debug               Show each request on stderr, without secrets
  -h, --help            Help for a command
  -v, --version         The version of this program

Environment (also read from ~/.tokenhub/env)
  TOKENHUB_URL            Server URL (http://localhost:8080)
  TOKENHUB_ADMIN_TOKEN    Admin token; on the server's machine found without it
  TOKENHUB_API_KEY        Client key for model-test
  TOKENHUB_VAULT_PASSWORD Password for vault unlock
  TOKENHUB_OUTPUT         Output format when -o is not given

Examples
  export TOKENHUB_ADMIN_TOKEN="$(tokenhubctl admin-token)"
  tokenhubctl vault unlock
  tokenhubctl provider add '{"id":"openai","type":"openai","base_url":"https://api.openai.com"}'
  tokenhubctl model list -o json
  tokenhubctl tsdb query 'metric=latency&model_id=gpt-4o&step_ms=60000'

Topics: tokenhubctl help environment | exit-codes | output | arguments
"""


def usage() -> str:
    """The full help text."""
    parts = [_HEAD]
    for title, lines in SECTIONS:
        parts.append(f"\n{title}\n")
        parts.extend(f"  {synopsis:<32} {summary}\n" for synopsis, summary in lines)
    parts.append(_TAIL)
    return "".join(parts)
