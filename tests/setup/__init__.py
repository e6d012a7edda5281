"""Sets up what ./dev needs: environments, engines and the stand-in image. Standard library only."""
