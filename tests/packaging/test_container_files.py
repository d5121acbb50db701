"""No engine runs these files here, so what they promise is checked by reading them."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from tests.packaging.project import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def stages():
    """Stage name → its instructions."""
    found, current = {}, None
    for line in DOCKERFILE.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            current = found.setdefault(rest.split()[-1], [])
        if current is not None and word and not word.startswith("#"):
            current.append((word, rest.strip()))
    return found


def values(stage, word):
    return [rest for name, rest in stages()[stage] if name == word]


@pytest.fixture(scope="module")
def service():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["tokenhub"]


def test_the_last_stage_is_the_image_so_a_plain_build_makes_it():
    assert list(stages()) == ["build", "bundler", "bundle", "image"]


def test_the_server_runs_as_a_user_without_rights_and_is_the_first_process():
    assert values("image", "USER") == ["tokenhub"]
    assert "--create-home" in " ".join(values("image", "RUN"))
    assert values("image", "ENTRYPOINT") == ['["tokenhub"]']


def test_data_is_a_private_volume():
    assert values("image", "VOLUME") == ["/data"]
    assert "install -d -m 0700 -o tokenhub -g tokenhub /data" in " ".join(values("image", "RUN"))
    [environment] = values("image", "ENV")
    assert "TOKENHUB_DATA_DIR=/data" in environment
    assert "TOKENHUB_LISTEN_ADDR=0.0.0.0:8080" in environment


def test_port_and_health_check_agree_with_the_listen_address():
    assert values("image", "EXPOSE") == ["8080"]
    assert values("image", "HEALTHCHECK")[0].endswith('CMD ["tokenhub", "--healthcheck"]')


def test_everything_from_a_registry_is_checked_by_hash():
    for line in values("build", "RUN"):
        for command in line.split("&&"):
            words = shlex.split(command)
            if "install" in words and "-r" in words:
                assert "--require-hashes" in words


def test_what_is_copied_exists_and_reaches_the_engine():
    ignore = (ROOT / ".dockerignore").read_text().split()
    for stage in ("build", "bundler"):
        for copy in values(stage, "COPY"):
            for source in copy.split()[:-1]:
                name = source.rstrip("/")
                assert (ROOT / name).exists()
                assert f"!{name}" in ignore


def test_no_secret_is_built_into_the_image():
    assert not re.search(r"(TOKEN|PASSWORD|API_KEY)\s*=", DOCKERFILE)


def test_compose_names_the_container_the_command_line_looks_for():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert compose["name"] == "tokenhub"
    assert list(compose["services"]) == ["tokenhub"]


def test_compose_publishes_the_port_on_this_machine_only(service):
    assert service["ports"] == ["${TOKENHUB_BIND:-127.0.0.1}:${TOKENHUB_PORT:-8080}:8080"]


def test_compose_takes_rights_away(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


def test_compose_keeps_data_restarts_and_reaches_the_host(service):
    assert service["volumes"] == ["data:/data"]
    assert service["restart"] == "unless-stopped"
    assert service["extra_hosts"] == ["host.docker.internal:host-gateway"]


def test_compose_gives_the_server_time_to_drain(service):
    from tokenhub.settings import VARIABLES  # only this test reads code

    [drain] = [variable for variable in VARIABLES if variable.name == "SHUTDOWN_DRAIN_SECS"]
    assert int(service["stop_grace_period"].removesuffix("s")) > int(drain.default)


def test_compose_passes_secrets_on_without_naming_values(service):
    assert all("=" not in line for line in service["environment"])


def test_kubernetes_never_runs_two_servers_and_probes_life_and_readiness_apart():
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    [deployment] = [each for each in documents if each["kind"] == "Deployment"]
    spec = deployment["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["type"] == "Recreate"
    [container] = spec["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    user = spec["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"--uid {user}" in DOCKERFILE
