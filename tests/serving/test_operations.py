"""The routes around the model that other servers have under the same names: /ping, /tokenizer_info."""

import jinja2.sandbox
import pytest
from tokenizers import AddedToken

from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from tests.serving.asgi import call
from tests.serving.fake import FakeService, fake_app
from tests.serving.scripted import CONFIG, INFO, Scripted
from tests.tiny import CHATML, byte_level_tokenizer


@pytest.mark.parametrize("state", ["starting", "ready", "draining", "failed", "stopped"])
def test_ping_is_health_and_needs_no_key(state):
    service = FakeService()
    service.state = state
    app = fake_app(service, api_key="secret")
    health = call(app, "/health")
    for method in ("GET", "POST"):
        ping = call(app, "/ping", method=method)
        assert (ping.status_code, ping.json()) == (health.status_code, health.json())
    refused = call(app, "/ping", method="DELETE")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
    paths = app.openapi()["paths"]
    assert "security" not in paths["/ping"]["get"] and "security" in paths["/tokenizer_info"]["get"]


def test_a_client_has_the_tokenizer_from_the_server():
    """As lm-eval's RemoteTokenizer does: names and template from /tokenizer_info, ids from /tokenize."""
    tokenizer = byte_level_tokenizer(template=CHATML)
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    app = create_app(Scripted(), INFO, tokenizer, CONFIG, Metrics({"greedy": 4, "sla": 4}))
    info = call(app, "/tokenizer_info").json()
    assert (info["tokenizer_class"], info["model_max_length"]) == ("PreTrainedTokenizerFast", INFO.context)
    for name in ("bos", "eos", "pad", "unk"):
        text = info[f"{name}_token"]
        tokens = call(app, "/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
        assert tokens == [getattr(tokenizer, f"{name}_token_id")]
    assert info["sep_token"] is None
    messages = [{"role": "user", "content": "Grüße 👍"}]
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(info["chat_template"])
    text = template.render(messages=messages, add_generation_prompt=True)
    chat = call(app, "/tokenize", {"messages": messages}).json()["tokens"]
    assert call(app, "/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"] == chat
    added = {int(i): token for i, token in info["added_tokens_decoder"].items()}
    assert {i: token["content"] for i, token in added.items()} == {
        i: token.content for i, token in tokenizer.added_tokens_decoder.items()
    }
    assert added[2]["special"] and not added[max(added)]["special"]
