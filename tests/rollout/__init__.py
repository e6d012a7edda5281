"""The role on real hosts: Molecule's scenarios, each as a test. Run with ./dev rollout."""
