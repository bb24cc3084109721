"""Profiles that guess ahead give the answers of the library without guesses, on a mesh too."""

import dataclasses
from pathlib import Path

import sla_jax
from sla_jax.serving.settings import Profile
from tests.programs import tiny_checkpoint
from tests.serving.real_worker import Driver, mixed_requests, started

PROFILES = (
    Profile(name="greedy", method="greedy", chunk=3, slots=2, draft=2),
    Profile(name="sla", method="sla", width=2, chunk=3, depth=1, slots=2, draft=2),
)


def test_guesses_of_a_server_change_no_answer(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "tiny")
    model = sla_jax.load(directory)
    plain = {profile.name: dataclasses.replace(profile, draft=0).decoder() for profile in PROFILES}
    requests = [r for r in mixed_requests(tuple(model.end_tokens)) if r.profile in plain]
    expected = {}
    for request in requests:
        common = {"max_tokens": request.max_tokens, "sampling": request.sampling}
        chunks = model.stream(list(request.prompt), search=plain[request.profile], **common)
        expected[request.id] = [token for chunk in chunks for token in chunk.token_ids]
    worker = started(directory, profiles=PROFILES, mesh={"data": 2, "tensor": 2}, engine={"buckets": (128,)})
    assert Driver(worker).run(requests) == expected
