"""Whether this machine is one of several hosts: by the environment, or by what Google Cloud's metadata say."""

from pathlib import Path

import pytest

from sla_jax import client
from sla_jax.errors import UserError
from sla_jax.training import hosts
from sla_jax.training.config import HostsConfig


@pytest.mark.parametrize(
    ("environment", "chips", "workers", "pod"),
    [
        ({}, False, "a,b", False),
        ({}, True, "", False),
        ({}, True, "unknown:unknown:10.0.0.2", False),
        ({}, True, "x:y:10.0.0.2,x:y:10.0.0.3", True),
        ({"TPU_WORKER_HOSTNAMES": "one"}, False, "", False),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, False, "", True),
        ({"MEGASCALE_NUM_SLICES": "2"}, False, "", True),
    ],
)
def test_a_pod_is_recognized(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], chips: bool, workers: str, pod: bool
) -> None:
    for name in hosts.POD:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts, "_chips", lambda: chips)
    monkeypatch.setattr(hosts, "_workers", lambda: workers)
    assert hosts.on_pod() is pod


def test_without_metadata_there_are_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise client.Unreachable("no route")

    monkeypatch.setattr(client, "send", refuse)
    assert hosts._workers() == ""
    assert hosts._chips() == bool([*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")])


@pytest.mark.parametrize(
    "given",
    [{"processes": 2}, {"coordinator": "a:1", "processes": 2}, {"coordinator": "a:1", "processes": 2, "process": 2}],
)
def test_half_an_address_is_refused(given: dict) -> None:
    with pytest.raises(UserError, match=r"hosts\.process"):
        HostsConfig(**given)


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "on_pod", lambda: False)
    hosts.join(HostsConfig())
    hosts.meet("nowhere")
    assert hosts.first() and hosts.agreed(7) == 7
