"""The viewer: a web application without a build step, and the few routes that give it its files."""
