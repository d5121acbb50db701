"""Random lives of a vault against a dictionary: what it must know, refuse and forget."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenhub.core.errors import NotFound, Unauthorized, VaultLocked
from tokenhub.storage.sqlite import SqliteDatabase
from tokenhub.vault.envelope import KdfParams, VaultTampered
from tokenhub.vault.vault import Vault

QUICK = KdfParams(memory_kib=8, iterations=1, lanes=1)
IDLE = 100.0
NAMES = st.sampled_from(["a", "b", "c", "d"])
WRONG = b"not the password"


class MovedClock:
    def __init__(self):
        self.seconds = 0.0

    def now_ms(self):
        return int(self.seconds * 1000)

    def monotonic(self):
        return self.seconds

    def new_id(self):
        return "id"


SELECT = "SELECT name, kind, owner, origin, version, sealed FROM vault_secrets ORDER BY name"
PUT = "INSERT OR REPLACE INTO vault_secrets VALUES (?, ?, ?, ?, ?, ?, 0)"


class VaultLife(RuleBasedStateMachine):
    """``current`` holds what the vault last wrote: name → (row, value); the rest is forged."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = MovedClock()
        self.rotations = 0
        self.password = b"password 0"
        self.unlocked = False
        self.used = 0.0
        self.current: dict[str, tuple[tuple, bytes]] = {}
        self.history: list[tuple] = []

    @initialize()
    def begin(self):
        self.runner.run(self.open())
        self.unlock()

    def teardown(self):
        self.runner.run(self.db.close())
        self.runner.close()
        self.folder.cleanup()

    async def open(self):
        path = Path(self.folder.name) / "v.sqlite"
        self.db = await SqliteDatabase.open(path, self.clock)
        self.vault = await Vault.open(
            self.db, self.clock, auto_lock_ms=int(IDLE * 1000), kdf=QUICK, floor=QUICK
        )

    def stored(self):
        return {row[0]: row for row in self.db.read_now(SELECT)}

    def forge(self, row):
        self.runner.run(self.db.write(lambda tx: tx.execute(PUT, row)))

    def use(self):
        """Whether the vault must serve now; it counts as use."""
        self.unlocked = self.unlocked and self.clock.seconds - self.used < IDLE
        self.used = self.clock.seconds
        return self.unlocked

    @rule(name=NAMES, value=st.binary(min_size=1, max_size=40))
    def put(self, name, value):
        if not self.use():
            with pytest.raises(VaultLocked):
                self.runner.run(self.vault.put(name, value, kind="secret"))
            return
        self.runner.run(self.vault.put(name, value, kind="secret"))
        self.current[name] = self.stored()[name], value
        self.history.append(self.stored()[name])

    @rule(name=NAMES)
    def delete(self, name):
        refusal = NotFound if self.use() else VaultLocked
        if self.unlocked and name in self.stored():
            self.runner.run(self.vault.delete(name))
            self.current.pop(name, None)
            return
        with pytest.raises(refusal):
            self.runner.run(self.vault.delete(name))

    @rule(name=NAMES)
    def get(self, name):
        row = self.stored().get(name)
        if not self.use():
            refusal = VaultLocked
        elif row is None:
            refusal = NotFound
        elif row == self.current.get(name, (None,))[0]:
            assert self.vault.get(name, kind="secret") == self.current[name][1]
            return
        else:
            refusal = VaultTampered
        with pytest.raises(refusal):
            self.vault.get(name, kind="secret")

    @rule()
    def lock(self):
        self.vault.lock()
        self.unlocked = False

    @rule()
    def unlock(self):
        if self.vault.locked:
            self.unlocked = True
            self.used = self.clock.seconds
            stored = self.stored()
            self.current = {name: self.current[name] for name in self.current if name in stored}
        self.runner.run(self.vault.unlock(self.password))

    @rule()
    def guess_then_rotate(self):
        with pytest.raises(Unauthorized):
            self.runner.run(self.vault.unlock(WRONG))
        with pytest.raises(Unauthorized):
            self.runner.run(self.vault.rotate(WRONG, b"never used"))
        self.rotations += 1
        old, self.password = self.password, b"password %d" % self.rotations
        self.runner.run(self.vault.rotate(old, self.password))

    @rule()
    def restart(self):
        self.runner.run(self.db.close())
        self.runner.run(self.open())
        self.unlocked = False

    @rule(seconds=st.sampled_from([1.0, IDLE - 1, IDLE, 10 * IDLE]))
    def wait(self, seconds):
        self.clock.seconds += seconds
        self.vault.check_idle()

    @precondition(lambda self: not self.unlocked and self.history)
    @rule(data=st.data())
    def replay(self, data):
        self.forge(data.draw(st.sampled_from(self.history)))

    @precondition(lambda self: not self.unlocked and len(self.stored()) > 1)
    @rule(data=st.data())
    def swap(self, data):
        one, two = data.draw(st.permutations(list(self.stored().values())))[:2]
        self.forge((*one[:5], two[5]))

    @precondition(lambda self: not self.unlocked and self.stored())
    @rule(data=st.data(), bit=st.integers(0, 5000))
    def flip_a_bit(self, data, bit):
        row = data.draw(st.sampled_from(list(self.stored().values())))
        text = bytearray(row[5].encode("latin-1"))
        text[bit // 8 % len(text)] ^= 1 << bit % 7
        self.forge((*row[:5], text.decode("latin-1")))

    @precondition(lambda self: not self.unlocked and self.stored())
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.stored())))
        sql = "DELETE FROM vault_secrets WHERE name = ?"
        self.runner.run(self.db.write(lambda tx: tx.execute(sql, (name,))))

    @invariant()
    def is_locked_when_it_must_be(self):
        if hasattr(self, "vault"):
            idle = self.clock.seconds - self.used >= IDLE
            assert self.vault.locked == (not self.unlocked or idle)


TestVaultLife = VaultLife.TestCase
TestVaultLife.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
