"""/openapi.json is true: bodies that break it are refused, bodies made from it can be taken, every reply is described.

That every valid body is taken is not asked: a schema cannot say that one field excludes another, or how many tokens a
text has. What it can say is checked the other way round: a body that is taken exists, and is found.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, find, settings
from schemathesis.openapi.checks import RejectedPositiveData

from tests.serving.fake import FakeService, fake_app

SERVICE = FakeService("Yes, 42 Grüße.", sync=True)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", fake_app(SERVICE))
POSTS = sorted(path for path, methods in SCHEMA.raw_schema["paths"].items() if "post" in methods)


@SCHEMA.parametrize()
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_the_app_does_what_its_schema_says(case):
    try:
        case.call_and_validate()
    except* RejectedPositiveData:
        pass
    assert SERVICE.reserved == 0


@pytest.mark.parametrize("path", POSTS)
def test_valid_bodies_can_be_made_from_the_schema(path):
    bodies = SCHEMA[path]["POST"].as_strategy()
    first = settings(max_examples=2000, phases=[Phase.generate])
    assert find(bodies, lambda case: case.call().status_code == 200, settings=first).path == path
