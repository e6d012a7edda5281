"""podman and docker: what is true of a container, whatever the engine says."""
