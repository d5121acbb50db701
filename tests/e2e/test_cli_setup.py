"""Setting things up by the command line: ids of every shape, exit codes, a model test."""

from __future__ import annotations

import json

IDS = [
    "Qwen/Qwen2.5-Coder-32B-Instruct", "a:b.c", "x%2Fy", "q?r#s", "so many spaces", "käse", "..",
    "'", "-dash",
]  # fmt: skip


def test_ids_of_every_shape_survive_the_way_there_and_back(hub):
    hub.ok("POST", "/providers", {"id": "up", "type": "vllm", "base_url": "http://127.0.0.1:9"})
    accepted = []
    for model_id in IDS:
        body = json.dumps({"id": model_id, "provider_id": "up"})
        added = hub.ctl("model", "add", "-", stdin=body)
        if added.returncode:
            assert added.stderr.startswith("error: "), added.stderr
            continue
        accepted.append(model_id)
        assert hub.ctl("model", "disable", model_id).returncode == 0
        got = hub.ctl("model", "get", model_id)
        assert got.returncode == 0, got.stderr
        shown = json.loads(got.stdout)
        assert (shown["id"], shown["enabled"]) == (model_id, False)
    names = hub.ctl("model", "list", "-o", "name").stdout.splitlines()
    assert sorted(names) == sorted(accepted)
    assert {"Qwen/Qwen2.5-Coder-32B-Instruct", "a:b.c"} <= set(accepted)
    for model_id in accepted:
        assert hub.ctl("model", "delete", model_id).returncode == 0
    assert hub.ctl("model", "delete", accepted[0]).returncode == 3


def test_exit_codes_by_class(hub):
    assert hub.ctl("vault", "unlock", "short").returncode == 4
    assert hub.ctl("vault", "unlock", "-", stdin="long-enough\n").returncode == 0
    wrong = hub.ctl("vault", "unlock", "another-password")
    assert (wrong.returncode, wrong.stdout) == (4, "")
    assert hub.ctl("vault", "lock").returncode == 0
    openai = '{"id":"o","type":"openai","base_url":"https://api.openai.com","api_key":"sk-x"}'
    locked = hub.ctl("provider", "add", openai)
    assert (locked.returncode, "tokenhubctl vault unlock" in locked.stderr) == (5, True)
    assert hub.ctl("model", "get", "nope").returncode == 3
    assert hub.ctl("model", "add", '{"id":"m","provider_id":"nope"}').returncode in {1, 3}
    refused = hub.ctl("status", env={"TOKENHUB_ADMIN_TOKEN": "wrong", "TOKENHUB_URL": hub.url})
    assert refused.returncode == 0, "the token file of this machine is the next source"
    assert hub.ctl("status", "--url", "http://127.0.0.1:9").returncode == 6


def test_model_test_with_the_demo_model(hub):
    ran = hub.ctl("model-test", "demo", "-", stdin=hub.demo_key)
    assert ran.returncode == 0, ran.stderr
    assert "Status:           200\n" in ran.stdout
    assert hub.ctl("model-test", "demo").returncode == 4
    assert hub.ctl("model-test", "nope", "-", stdin=hub.demo_key).returncode != 0
