"""What a server with a little of everything answers, by route."""

from __future__ import annotations

from typing import Any

AT = "2026-03-01T10:20:30Z"

MODELS = [
    {"id": "gpt-4o", "provider_id": "openai", "weight": 8, "max_context_tokens": 128000,
     "input_per_1k": 0.0025, "output_per_1k": 0.01, "enabled": True, "pricing_source": "manual"},
    {"id": "Qwen/Qwen2.5", "provider_id": "local", "weight": 3, "max_context_tokens": 0,
     "input_per_1k": None, "output_per_1k": None, "enabled": False, "pricing_source": "unknown"},
    {"id": "demo", "provider_id": "demo", "weight": 5, "max_context_tokens": 32768,
     "input_per_1k": 0, "output_per_1k": 0, "enabled": True, "pricing_source": "manual"},
]  # fmt: skip

ENGINE: dict[str, Any] = {
    "models": MODELS, "total": 3, "limit": 1000, "offset": 0, "adapters": ["openai", "demo"],
    "adapter_info": [
        {"id": "openai", "type": "openai", "source": "store",
         "health_endpoint": "https://api.openai.com/v1/models"},
        {"id": "demo", "type": "demo", "source": "runtime"},
    ],
}  # fmt: skip

PROVIDERS = [
    {"id": "openai", "type": "openai", "enabled": True, "base_url": "", "cred_store": "vault"},
    {"id": "local", "type": "vllm", "enabled": False, "base_url": "http://10.0.0.5:8000",
     "cred_store": "none", "source": "store"},
]  # fmt: skip

KEYS = [
    {"id": "k2", "name": "prod-app", "key_prefix": "tokenhub_ab12", "scopes": '["chat","plan"]',
     "enabled": True, "created_at": AT, "last_used_at": None, "expires_at": None,
     "rotation_days": 0, "rate_limit_rps": 0, "monthly_budget_usd": 50.0,
     "current_spend_usd": 1.5, "reserved_usd": 0},
    {"id": "k1", "name": "batch", "key_prefix": "tokenhub_cd34", "scopes": [], "enabled": False,
     "created_at": AT, "last_used_at": AT, "monthly_budget_usd": 0, "current_spend_usd": 0,
     "reserved_usd": 0},
]  # fmt: skip

HEALTH = [
    {"provider_id": "openai", "state": "healthy", "total_requests": 10, "total_errors": 1,
     "consec_errors": 0, "avg_latency_ms": 812.4, "last_success_at": AT,
     "cooldown_until": "0001-01-01T00:00:00Z"},
    {"provider_id": "local", "state": "down", "total_requests": 5, "total_errors": 5,
     "consec_errors": 5, "avg_latency_ms": None, "last_success_at": None,
     "last_error": "connection refused " * 5, "last_error_time": AT, "cooldown_until": AT},
]  # fmt: skip

LOGS = [
    {"timestamp": AT, "model_id": "gpt-4o", "provider_id": "openai", "mode": "cheap",
     "latency_ms": 1234, "estimated_cost_usd": 0.00042, "status_code": 200, "request_id": "r2",
     "input_tokens": 10, "output_tokens": 20, "api_key_id": "k2", "error_class": ""},
    {"timestamp": AT, "model_id": "demo", "provider_id": "demo", "mode": "", "latency_ms": 3,
     "estimated_cost_usd": 0, "status_code": 200, "request_id": "r1"},
    {"timestamp": AT, "model_id": "", "provider_id": "", "mode": "normal", "latency_ms": 0,
     "estimated_cost_usd": 0, "status_code": 429, "request_id": "r0"},
]  # fmt: skip

AUDIT = [
    {"timestamp": AT, "action": "provider.upsert", "resource": "openai", "request_id": "a1",
     "actor": "admin", "outcome": "ok"},
]  # fmt: skip

STATS = {"global": [{"window": "1m", "request_count": 90, "error_rate": 0.1, "total_cost_usd": 0.5,
                     "avg_latency_ms": 100, "p95_latency_ms": 2500}]}  # fmt: skip

ALIASES = [
    {"name": "fast", "variants": [{"model_id": "gpt-4o", "weight": 3},
                                  {"model_id": "demo", "weight": 1}], "enabled": True,
     "sticky_by": "key"},
]  # fmt: skip

ANSWERS: dict[str, Any] = {
    "GET /healthz": {"status": "ok", "adapters": 2, "models": 3},
    "GET /admin/v1/info": {"tokenhub": "admin", "vault_locked": True, "vault_initialized": False,
                           "version": "0.1.0"},
    "GET /admin/v1/engine/models": ENGINE,
    "GET /admin/v1/providers": {"items": PROVIDERS, "total": 2},
    "GET /admin/v1/providers/openai": PROVIDERS[0],
    "GET /admin/v1/providers/openai/discover": {
        "provider_id": "openai", "total": 2,
        "models": [{"id": "o9", "registered": False}, {"id": "gpt-4o", "registered": True}],
    },
    "GET /admin/v1/models/Qwen%2FQwen2.5": MODELS[1],
    "GET /admin/v1/apikeys": {"keys": KEYS, "total": 2},
    "GET /admin/v1/models": {"items": MODELS[:1], "total": 1},
    "GET /admin/v1/apikeys/k2": KEYS[0],
    "GET /admin/v1/health": {"providers": HEALTH},
    "GET /admin/v1/vault/status": {"enabled": True, "initialized": True, "locked": False},
    "GET /admin/v1/vault/secrets": {"secrets": ["b", "a"]},
    "GET /admin/v1/vault/secrets/a": {"key": "a", "value": "s3cret"},
    "GET /admin/v1/routing-config": {"default_mode": "cheap", "stored": {}},
    "GET /admin/v1/aliases": {"items": ALIASES, "total": 1},
    "GET /admin/v1/aliases/fast": ALIASES[0],
    "GET /admin/v1/logs?limit=50": {"logs": LOGS},
    "GET /admin/v1/logs?limit=20": {"logs": LOGS},
    "GET /admin/v1/logs?limit=2": {"logs": LOGS[:2]},
    "GET /admin/v1/logs/r2": {**LOGS[0], "attempts": [{"number": 1, "model_id": "gpt-4o"}]},
    "GET /admin/v1/audit?limit=50": {"logs": AUDIT},
    "GET /admin/v1/audit?limit=3": {"logs": AUDIT},
    "GET /admin/v1/audit/verify": {"ok": True, "rows": 12},
    "GET /admin/v1/rewards?limit=50": {"rewards": [{"request_id": "r2", "reward": 0.5}]},
    "GET /admin/v1/stats": STATS,
    "GET /admin/v1/tsdb/metrics": {"metrics": ["cost", "latency"]},
    "GET /admin/v1/tsdb/query?metric=latency&model_id=gpt-4o&step_ms=60000": {"series": []},
    "GET /admin/v1/tsdb/query?metric=latency": {"series": []},
    "POST /admin/v1/tsdb/prune": {"deleted": 4},
    "PUT /admin/v1/tsdb/retention": {"ok": True, "retention_days": 30},
    "GET /admin/v1/decisions/r2": {"request_id": "r2", "chosen": "gpt-4o"},
    "POST /admin/v1/decisions/r2/replay": {"request_id": "r2", "same": True},
    "POST /admin/v1/routing/simulate": {"decision": {"model_id": "demo"}, "eligible": []},
    "GET /admin/v1/prices": {"items": [
        {"model_id": "gpt-4o", "input_per_1k": 0.0025, "output_per_1k": 0.01,
         "cached_read_per_1k": 0.00125, "source": "catalogue", "version": "2026-03-01"},
        {"model_id": "Qwen/Qwen2.5", "input_per_1k": None, "output_per_1k": None,
         "source": "unknown", "version": ""},
    ]},
    "GET /admin/v1/prices/gpt-4o": {"model_id": "gpt-4o", "input_per_1k": 0.0025},
    "GET /admin/v1/budget": {"accounts": [
        {"key_id": "k2", "name": "prod-app", "period": "2026-03", "limit_usd": 50.0,
         "spent_usd": 1.5, "reserved_usd": 0.25, "remaining_usd": 48.25, "overrun_usd": 0},
        {"key_id": "k1", "name": "batch", "period": "2026-03", "limit_usd": None, "spent_usd": 0,
         "reserved_usd": 0, "remaining_usd": None, "overrun_usd": 0},
    ]},
    "POST /admin/v1/budget/verify": {"ok": True, "accounts": 2, "problems": []},
    "GET /admin/v1/spend?by=model": {"items": [
        {"model_id": "gpt-4o", "requests": 3, "input_tokens": 30, "output_tokens": 60,
         "cost_usd": 0.0012},
    ]},
}  # fmt: skip

OK = {"ok": True}
CHANGES: dict[str, Any] = {
    "POST /admin/v1/vault/unlock": {"ok": True, "created": False},
    "POST /admin/v1/vault/lock": OK,
    "POST /admin/v1/vault/rotate": OK,
    "PUT /admin/v1/vault/secrets/a": {"ok": True, "key": "a"},
    "DELETE /admin/v1/vault/secrets/a": {"ok": True, "key": "a"},
    "POST /admin/v1/providers": {"ok": True, "cred_store": "vault"},
    "PATCH /admin/v1/providers/openai": OK,
    "DELETE /admin/v1/providers/openai": OK,
    "POST /admin/v1/models": OK,
    "PATCH /admin/v1/models/Qwen%2FQwen2.5": OK,
    "DELETE /admin/v1/models/Qwen%2FQwen2.5": OK,
    "PUT /admin/v1/routing-config": OK,
    "PUT /admin/v1/aliases/fast": ALIASES[0],
    "DELETE /admin/v1/aliases/fast": OK,
    "POST /admin/v1/apikeys": {"ok": True, "id": "k9", "key": "tokenhub_0123", "name": "x",
                               "warning": "Keep it safe."},
    "POST /admin/v1/apikeys/k2/rotate": {"ok": True, "key": "tokenhub_4567"},
    "PATCH /admin/v1/apikeys/k2": OK,
    "DELETE /admin/v1/apikeys/k2": OK,
    "POST /admin/v1/apikeys/k2/paid": OK,
    "POST /admin/v1/admin-token/rotate": {"ok": True, "token": "new-token"},
    "PUT /admin/v1/prices/gpt-4o": OK,
    "POST /admin/v1/prices/import": {"ok": True, "changed": 7},
    "POST /admin/v1/prices/import?dry_run=true": {"changes": [
        {"model_id": "gpt-4o", "field": "input_per_1k", "old": 0.0025, "new": 0.002}]},
    "POST /admin/v1/budget/k2/adjust": OK,
}  # fmt: skip
