"""Texts of `tokenhubctl help TOPIC`."""

from __future__ import annotations

TOPICS = {
    "environment": """\
Environment and files

  TOKENHUB_URL             Server URL; http://localhost:8080 when not set
  TOKENHUB_ADMIN_TOKEN     Admin token, sent as a bearer token
  TOKENHUB_API_KEY         A client's key; used by model-test only
  TOKENHUB_VAULT_PASSWORD  Password for vault unlock, and the old one for vault rotate
  TOKENHUB_OUTPUT          Output format when -o is not given
  HTTPS_PROXY, NO_PROXY    Proxy for https URLs (http_proxy for http); never for this machine
  SSL_CERT_FILE            Certificates to trust instead of the system's

~/.tokenhub/env is read for TOKENHUB_* lines that the environment does not set. It may use quotes
and `export`; nothing in it is expanded.

The admin token is looked for in this order; when the server refuses one, the next is tried and
a note says so:
  1. TOKENHUB_ADMIN_TOKEN in the environment
  2. ~/.tokenhub/.admin-token, when TOKENHUB_URL is this machine
  3. TOKENHUB_ADMIN_TOKEN in ~/.tokenhub/env, unless that file names another server
""",
    "exit-codes": """\
Exit codes

    0  done
    1  the server refused or failed, or a check (doctor, verify) found something
    2  the command line makes no sense; nothing was sent
    3  the thing named does not exist
    4  authentication: no token, a wrong one, or a wrong password
    5  the vault is locked, or the present state does not allow it (conflict)
    6  the server cannot be reached, or did not answer in time
  130  ended with Ctrl-C

With -o json an error is one JSON object on stderr:
  {"error": {"code", "message", "hint", "request_id", "retryable", "exit_code"}}
""",
    "output": """\
Output

  -o table   Aligned columns for people (the default of lists)
  -o wide    The same with more columns
  -o json    JSON with two spaces of indentation (the default of stats, rewards, routing get,
             simulate, explain and tsdb)
  -o jsonl   One JSON value per line
  -o yaml    YAML
  -o csv     Comma-separated values with a heading line
  -o name    Only the id of each item, one per line

TOKENHUB_OUTPUT sets the default. --no-headers leaves out headings. --query takes a JMESPath
expression over the data that -o json prints:
  tokenhubctl model list --query "[?enabled].id" -o jsonl

stdout holds data only; messages, prompts and errors go to stderr. Tables show times in local
time; the machine formats keep the server's RFC 3339 in UTC. Control characters in names are
shown as escapes such as \\x1b.

-w (--watch) repeats a list: it redraws on a terminal and writes JSON lines through a pipe.
""",
    "arguments": """\
Arguments

JSON arguments and secrets may be given in four ways:
  tokenhubctl provider add '{"id": "openai", ...}'    on the command line
  tokenhubctl provider add -  < provider.json         from stdin
  tokenhubctl provider add @provider.json             from a file
  tokenhubctl vault unlock                            a secret: asked for, without echo

Start with \\@ for text that begins with @. One line break at the end of a secret from stdin or a
file is dropped. A password or token may begin with a dash; put -- before one that is also an
option's name. `vault rotate - -` reads the old and the new password from two lines.

Secrets on the command line show in the process list and stay in the shell's history.
""",
}
