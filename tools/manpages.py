"""Prints a manual page, written from what the programs say of themselves.

    manpages.py tokenhub|tokenhubctl

The programs are those beside the Python that runs this. Nothing is described twice, so a page
cannot fall behind its program.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SUMMARY = {
    "tokenhub": "self-hosted LLM routing gateway",
    "tokenhubctl": "command line of the TokenHub gateway",
}
TOPICS = ("arguments", "output", "environment", "exit-codes")


def ask(program: str, *words: str) -> str:
    """What an installed program prints."""
    path = Path(sys.executable).with_name(program)
    return subprocess.run([path, *words], capture_output=True, text=True, check=True).stdout


def escape(text: str) -> str:
    """Text for roff: no backslash, leading dot or quote is read as a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines()
    )


def section(heading: str, text: str) -> str:
    """A section that keeps its lines as they are."""
    return f".SH {heading}\n.nf\n{escape(text.strip(chr(10)))}\n.fi\n"


def tokenhub() -> str:
    """The server's page: its help, then each variable it reads."""
    text = section("DESCRIPTION", ask("tokenhub", "--help"))
    text += ".SH ENVIRONMENT\n"
    for line in ask("tokenhub", "--settings").splitlines():
        name, _, rest = line.partition(" ")
        default, _, meaning = rest.strip().partition("  ")
        text += f".TP\n.B {escape(name)}\n{escape(meaning.strip())}"
        text += f" (default: {escape(default)})\n" if default != "-" else "\n"
    return text + ".SH SEE ALSO\n.BR tokenhubctl (1)\n"


def tokenhubctl() -> str:
    """The command line's page: its help, each command, the topics."""
    text = section("DESCRIPTION", ask("tokenhubctl", "help")) + ".SH COMMANDS\n"
    for command in json.loads(ask("tokenhubctl", "commands", "-o", "json")):
        text += f".TP\n.B {escape(command['usage'])}\n{escape(command['help'])}.\n"
        text += "".join(f".br\n{escape(option_line(each))}\n" for each in command["options"])
    for topic in TOPICS:
        body = ask("tokenhubctl", "help", topic).partition("\n")[2]
        text += section(topic.upper().replace("-", " "), body)
    return text + ".SH SEE ALSO\n.BR tokenhub (1)\n"


def option_line(option: dict[str, Any]) -> str:
    """One option of a command."""
    value = " VALUE" if option["takes_value"] else ""
    return f"{', '.join(option['names'])}{value}: {option['help']}"


def page(program: str) -> str:
    """A whole manual page."""
    version = ask(program, "--version").split()[1]
    name = escape(program)
    head = f'.TH {program.upper()} 1 "" "TokenHub {version}" "TokenHub"\n'
    head += f".SH NAME\n{name} \\- {escape(SUMMARY[program])}\n"
    return head + {"tokenhub": tokenhub, "tokenhubctl": tokenhubctl}[program]()


if __name__ == "__main__":
    sys.stdout.write(page(sys.argv[1]))
