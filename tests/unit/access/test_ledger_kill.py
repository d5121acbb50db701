"""kill -9 under load: the books are exact afterwards, and every answer that was given is in them.

TOKENHUB_LEDGER_KILLS=50 makes it long.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.access.money import StillClock

from tokenhub.access.bookkeeper import Bookkeeper
from tokenhub.access.ledger import Ledger
from tokenhub.core.clock import SystemClock
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase

KILLS = int(os.environ.get("TOKENHUB_LEDGER_KILLS", "4"))
ROOT = Path(__file__).parents[3]

# Says on stdout, one line each: "sent ID" before a call would be made, "done ID COST" after its
# settlement stood. Both are written at once, so what is said happened.
CHILD = """
import asyncio, os, random, sys
from pathlib import Path
from tests.unit.access.money import PRICED, Key, most, used
from tokenhub.access.ledger import Ledger
from tokenhub.core.clock import SystemClock
from tokenhub.core.errors import PaymentRequired
from tokenhub.storage.spool import FileSpool
from tokenhub.storage.sqlite import SqliteDatabase

def say(text):
    os.write(1, text.encode() + b"\\n")

async def client(ledger, name, number):
    draw = random.Random(name)
    key = Key(monthly_budget=10**12) if number % 2 else Key(key_id="free")
    turn = 0
    while True:
        turn += 1
        request = f"{name}-{turn}"
        bound = draw.randrange(1, 1000)
        async with ledger.spend(key, request, 1, PRICED, most(bound)) as hold:
            if number % 2:
                say(f"sent {request}")
            await asyncio.sleep(draw.random() / 100)
            cost = draw.randrange(bound + 1)
            await hold.settle(used(cost))
            ledger.put_down()
            say(f"done {request} {cost}")

async def main():
    clock = SystemClock()
    db = await SqliteDatabase.open(Path(sys.argv[1]), clock)
    ledger = await Ledger.open(db, clock, FileSpool(Path(sys.argv[1])))
    say("ready")
    await asyncio.gather(*[client(ledger, f"{sys.argv[2]}-{n}", n) for n in range(32)])

asyncio.run(main())
"""


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_kill_9_under_load(tmp_path):
    path = tmp_path / "money.sqlite"
    chance = random.Random("kill")
    done: dict[str, int] = {}
    sent: set[str] = set()
    crashed = noted = 0
    for cycle in range(KILLS):
        for line in life(path, cycle, chance.uniform(0.05, 0.4)):
            word, request, *rest = line.split()
            if word == "sent":
                sent.add(request)
            else:
                done[request] = int(rest[0])
        db = await SqliteDatabase.open(path, SystemClock())
        spool = FileSpool(path)
        noted += len(spool.read())
        ledger = await Ledger.open(db, StillClock(), spool)
        crashed += ledger.crashed
        assert await Bookkeeper(db, StillClock(), ledger).verify() == []
        rows = await db.read(
            "SELECT request_id, state, reserved, settled, flag FROM ledger_attempts"
        )
        reserved = await db.read("SELECT SUM(reserved) FROM ledger_accounts")
        await ledger.close()
        await db.close()
        assert reserved == [(0,)]
        books = {request: row for request, *row in rows}
        assert len(books) == len(rows)
        assert sent <= books.keys()
        for request, cost in done.items():
            state, _, settled, flag = books[request]
            assert (state, settled, flag) == ("settled", cost, "")
        for request, (_, bound, settled, flag) in books.items():
            if request not in done and flag:
                assert (flag, settled) == ("crash", bound)
    assert len(done) > 100
    assert crashed > 0
    assert noted > 0


def life(path, cycle, seconds):
    """What a child said between its start and its death."""
    command = [sys.executable, "-c", CHILD, str(path), str(cycle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        return child.stdout.read().split("\n")[:-1]
