"""Many searches at once, streamed over HTTP: requests, the scheduler, the engine, and the protocols around them."""
