"""The one harness: what every test that runs a runner, or a part of one, stands on."""
